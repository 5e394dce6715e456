"""scikit-learn's bundled handwritten digits: real images that need no download."""

from pathlib import Path

import torch
from torchvision.transforms.v2.functional import resize

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.base import DataOptions, ImageDataModule
from hsakd_pl.data.limits import check_channel_count
from hsakd_pl.data.splits import Split, stratified_indices
from hsakd_pl.signatures import Unpack


class DigitsDataModule(ImageDataModule):
    """Load 1,797 digits of 8 x 8 pixels, resized to 16 x 16: 70 % for training, augmented by shifts of 2 pixels.

    The images come with scikit-learn, so ``root`` has no effect; a configuration can switch to this data set by its
    class alone.

    Source: scikit-learn's ``load_digits``.

    Args:
        root: has no effect.
        channels: number of channels, all of which contain the grey levels.

    Other arguments: :class:`ImageDataModule`.

    Raises:
        UsageError: for a number of channels below 1.

    Examples:
        >>> data = DigitsDataModule(batch_size=64)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 3, 16, 16]), torch.Size([64]))
    """

    num_classes = 10
    image_size = 16
    mean: tuple[float, ...] = (0.3056,) * 3  # of the training images, computed
    std: tuple[float, ...] = (0.3188,) * 3
    train_transform = PadCropFlip(padding=2, flip=False)  # a mirrored digit is not a digit

    def __init__(self, root: str | Path = "data", channels: int = 3, **options: Unpack[DataOptions]) -> None:
        super().__init__(root, **options)
        check_channel_count(channels)
        self.channels = channels
        if channels != len(self.mean):
            self.mean = self.mean[:1] * channels
            self.std = self.std[:1] * channels

    def read_class_names(self) -> list[str]:
        return [str(digit) for digit in range(self.num_classes)]

    def read(self, train: bool) -> Split:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        pixels = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)  # from levels 0..16
        grey = resize(pixels[:, None], [16, 16], antialias=True)
        images = grey.expand(-1, self.channels, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        training, test = stratified_indices(labels, held_out=0.3, seed=0, option="digits")
        return Split(images, labels).take(training if train else test)
