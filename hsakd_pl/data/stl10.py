"""STL-10 (Coates et al. 2011) in its binary layout."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import STL10

from hsakd_pl.data.augment import random_resized_crop, resized_center_crop
from hsakd_pl.data.base import DataOptions, ImageDataModule
from hsakd_pl.data.images import obtain
from hsakd_pl.data.layout import advice
from hsakd_pl.data.splits import Split, check_class_names
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming, read_text
from hsakd_pl.signatures import Unpack

SIZE = 96  # side of the images on disk


class STL10DataModule(ImageDataModule):
    """Load STL-10's labelled images, 5,000 for training and 8,000 for testing, at 32 x 32 for the linear probe.

    Source: Coates et al., AISTATS 2011.

    Args:
        root: folder that contains ``stl10_binary/``, or that folder itself, with any checksums.
        image_size: side of the random resized crops in training, and of the resized test images.
        download: download the data set to ``root`` with torchvision if it is missing.

    Other arguments: :class:`ImageDataModule`.

    Examples:
        >>> data = STL10DataModule("data", batch_size=64)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 3, 32, 32]), torch.Size([64]))
    """

    num_classes = 10
    folder_name = "stl10_binary"
    mean = (0.5, 0.5, 0.5)  # as published for the probe
    std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 32,
        download: bool = False,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        self.image_size = image_size
        self.train_transform = random_resized_crop(image_size)
        self.test_transform = resized_center_crop(image_size, image_size)
        self.download = download

    def prepare_data(self) -> None:
        """Download the data set if ``download`` is set and it is missing."""
        with naming(self.folder):
            if self.download and not (self.folder / "test_y.bin").is_file():
                obtain("STL-10", self.root, partial(STL10, self.root, download=True))

    def read(self, train: bool) -> Split:
        split = "train" if train else "test"
        images_file = self.folder / f"{split}_X.bin"
        labels_file = self.folder / f"{split}_y.bin"
        for file in (images_file, labels_file):
            with naming(file):
                is_missing = not file.is_file()
            if is_missing:
                raise UsageError(
                    f"STL-10 lacks {file}: point --data.init_args.root at the folder that contains a complete "
                    f"stl10_binary/, or set --data.init_args.download true{advice(self.root)}"
                )
        image_bytes = 3 * SIZE * SIZE
        actual_bytes = images_file.stat().st_size
        count = labels_file.stat().st_size
        if count == 0 or actual_bytes != count * image_bytes:
            raise UsageError(
                f"{images_file} has {actual_bytes} bytes, not {image_bytes} for each of {count} "
                f"labels: download it and {labels_file.name} again"
            )
        labels = _read_bytes(labels_file)
        if labels.min() < 1 or labels.max() > self.num_classes:
            raise UsageError(f"{labels_file} contains labels outside 1..{self.num_classes}: download it again")
        columns_first = _read_bytes(images_file).reshape(-1, 3, SIZE, SIZE)
        images = np.ascontiguousarray(columns_first.transpose(0, 1, 3, 2))
        return Split(torch.from_numpy(images), torch.from_numpy(labels).long() - 1)

    def read_class_names(self) -> list[str]:
        file = self.folder / "class_names.txt"
        with naming(file):
            if not file.is_file():
                return []
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        return check_class_names(names, self.num_classes, file)


def _read_bytes(file: Path) -> np.ndarray:
    with naming(file):
        return np.fromfile(file, np.uint8)
