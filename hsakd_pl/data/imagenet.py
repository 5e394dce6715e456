"""ImageNet (ILSVRC2012), or any class folders of photographs in its layout."""

from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageNet
from torchvision.datasets.imagenet import ARCHIVE_META

from hsakd_pl.data.augment import random_resized_crop, resized_center_crop
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.images import class_folders, class_names_of, obtain
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError


class ImageNetDataModule(ImageDataModule):
    """Class folders, opened in worker processes: random resized crops to train on, the centre to test on.

    Args:
        root: folder with ``train/<class>/`` and ``val/<class>/``, which is for testing, or with the archives
            ``ILSVRC2012_*.tar`` and the devkit, which torchvision then unpacks there.
        image_size: side of the crops; evaluation first takes the short side to 256/224 of it.
        decode_on_device: workers read files, the device decodes and crops: on NVIDIA GPUs with nvJPEG, for hosts with
            too few cores. The pixels are those of another decoder: evaluate with the one that you trained with.

    Other arguments: :class:`ImageDataModule`.
    """

    num_classes = 1000
    mean = (0.485, 0.456, 0.406)  # the statistics torchvision's weights were trained with
    std = (0.229, 0.224, 0.225)

    def __init__(
        self, root: str | Path = "data", image_size: int = 224, decode_on_device: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_size, self.decode_on_device = image_size, decode_on_device
        self.train_transform = random_resized_crop(image_size)
        self.test_transform = resized_center_crop(image_size, image_size * 256 // 224)
        self.num_classes = len(class_names_of(self.folder / "train")) or self.num_classes

    def prepare_data(self) -> None:
        """Unpack the original archives where the class folders are not there yet."""
        if (self.root / ARCHIVE_META["devkit"][0]).is_file():
            for split in ("train", "val"):
                if not (self.root / split).is_dir():
                    obtain("ImageNet", self.root, partial(ImageNet, self.root, split))

    def read(self, train: bool) -> Split:
        folder = self.folder / ("train" if train else "val")
        if any(folder.glob("*.tar")):
            raise UsageError(f"{folder} still holds archives, so it was unpacked in part: remove it, start again")
        return Split(*class_folders(folder, class_names_of(self.folder / "train")))

    def read_class_names(self) -> list[str]:
        return class_names_of(self.folder / "train") or super().read_class_names()
