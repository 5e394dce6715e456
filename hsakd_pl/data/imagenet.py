"""ImageNet (ILSVRC2012), or class folders of photographs in its layout."""

from functools import partial
from pathlib import Path

from torchvision.datasets import ImageNet
from torchvision.datasets.imagenet import ARCHIVE_META

from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import ClassFolderDataModule
from hsakd_pl.data.images import obtain
from hsakd_pl.files import naming
from hsakd_pl.signatures import Unpack


class ImageNetDataModule(ClassFolderDataModule):
    """ImageNet: random resized crops for training, the centre for testing; worker processes open the files.

    Photographs are turned upright as their EXIF data say, and transparent pixels are white.

    Args:
        root: folder with ``train/<class>/`` and, for testing, ``val/<class>/``; or with the archives
            ``ILSVRC2012_*.tar`` and the devkit, which torchvision then unpacks there.
        image_size: side of the crops; for testing, the short side is first resized to 256/224 of it.
        decode_on_device: decode and crop on the device (NVIDIA GPUs with nvJPEG), for hosts with too few cores; workers
            only read files. Pixels differ slightly between decoders: evaluate with the decoder used in training.

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
        """Unpack the original archives if the class folders do not exist yet."""
        with naming(self.root):
            if (self.root / ARCHIVE_META["devkit"][0]).is_file():
                for split in ("train", "val"):
                    if not (self.root / split).is_dir():
                        obtain("ImageNet", self.root, partial(ImageNet, self.root, split))
