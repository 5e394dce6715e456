"""ImageNet (ILSVRC2012), or class folders of photographs in its layout."""

from functools import partial
from pathlib import Path

from torchvision.datasets import ImageNet
from torchvision.datasets.imagenet import ARCHIVE_META

from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import ClassFolderDataModule
from hsakd_pl.data.images import obtain
from hsakd_pl.signatures import Unpack


class ImageNetDataModule(ClassFolderDataModule):
    """Class folders, opened in worker processes: random resized crops to train on, the centre to test on.

    Photographs are turned upright as their EXIF data say, and what is transparent in them is white.

    Args:
        root: folder with ``train/<class>/`` and ``val/<class>/``, which is for testing, or with the archives
            ``ILSVRC2012_*.tar`` and the devkit, which torchvision then unpacks there.
        image_size: side of the crops; evaluation first takes the short side to 256/224 of it.
        decode_on_device: workers read files, the device decodes and crops: on NVIDIA GPUs with nvJPEG, for hosts with
            too few cores. The pixels are those of another decoder: evaluate with the one that you trained with.

    Other arguments: :class:`ImageDataModule`.
    """

    num_classes = 1000

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 224,
        decode_on_device: bool = False,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        self.use_size(image_size, image_size * 256 // 224, random_resized_crop(image_size))
        self.num_classes = len(self.read_class_names()) or self.num_classes
        self.decode_on_device = decode_on_device

    def prepare_data(self) -> None:
        """Unpack the original archives where the class folders are not there yet."""
        if (self.root / ARCHIVE_META["devkit"][0]).is_file():
            for split in ("train", "val"):
                if not (self.root / split).is_dir():
                    obtain("ImageNet", self.root, partial(ImageNet, self.root, split))
