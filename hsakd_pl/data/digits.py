"""scikit-learn's bundled handwritten digits: real images that need no download."""

import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import resize

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.splits import Split, stratified_indices


class DigitsDataModule(ImageDataModule):
    """1,797 digits, 8 x 8 scaled to 16 x 16, 70 % for training, augmented by shifts of up to 2 pixels.

    The images come with scikit-learn, so ``root`` has no effect: a config may change the data set alone.
    Arguments: :class:`ImageDataModule`.
    """

    num_classes = 10
    image_size = 16
    mean = (0.3056,) * 3  # of the training images, computed
    std = (0.3188,) * 3
    train_transform = PadCropFlip(padding=2, flip=False)  # a mirrored digit is no digit

    def read_class_names(self) -> list[str]:
        return [str(digit) for digit in range(self.num_classes)]

    def read(self, train: bool) -> Split:
        digits = load_digits()
        pixels = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)  # from 0..16
        images = resize(pixels[:, None], [16, 16], antialias=True).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        return Split(images, labels).take(stratified_indices(labels, 0.3, 0, "digits")[0 if train else 1])
