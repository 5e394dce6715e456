"""CIFAR-100 (Krizhevsky 2009), 32 x 32, from its pickles or from class folders of images."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR100

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.base import DataOptions, ImageDataModule
from hsakd_pl.data.images import decode_images, obtain
from hsakd_pl.data.layout import advice, split_folder
from hsakd_pl.data.splits import Split, check_class_names
from hsakd_pl.data.walk import class_folders, class_names_of
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming
from hsakd_pl.files.pickles import read_entries
from hsakd_pl.signatures import Unpack


class CIFAR100DataModule(ImageDataModule):
    """Load CIFAR-100 with the paper's augmentation: random crops after 4 pixels of padding, and flips.

    Source: Krizhevsky 2009; augmentation: Yang et al., IJCAI 2021, Sec. 4.1.

    Args:
        root: folder that contains ``cifar-100-python/``, or that folder itself, with any checksums; or the folder of
            ``train/<class>/`` and ``test/<class>/``, or other usual names of these splits, with 32 x 32 images.
        download: download the data set to ``root`` with torchvision if it is missing.

    Other arguments: :class:`ImageDataModule`.

    Examples:
        >>> data = CIFAR100DataModule("data", batch_size=64)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 3, 32, 32]), torch.Size([64]))
    """

    folder_name = "cifar-100-python"
    num_classes = 100
    image_size = 32
    mean = (0.5071, 0.4867, 0.4408)  # of the training images, as in the published code
    std = (0.2675, 0.2565, 0.2761)
    train_transform = PadCropFlip(padding=4)

    def __init__(
        self,
        root: str | Path = "data",
        download: bool = False,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        self.download = download
        training = self.folder / "train" if download else split_folder(self.folder, "train")  # of no other data set
        self.num_classes = len(class_names_of(training)) or self.num_classes

    def prepare_data(self) -> None:
        """Download the data set if ``download`` is set and it is missing."""
        with naming(self.folder):
            if self.download and not (self.folder / "train").exists():
                obtain("CIFAR-100", self.root, partial(CIFAR100, self.root, download=True))

    def read(self, train: bool) -> Split:
        name = "train" if train else "test"
        with naming(self.folder):
            is_pickled = any((self.folder / file).is_file() for file in ("train", "test"))
        if is_pickled:
            return _read_pickle(self.folder / name, self.num_classes)
        images = split_folder(self.folder, name)
        if class_names_of(images):
            paths, labels = class_folders(images, self.label_names())
            return Split(decode_images(paths, self.image_size), labels)
        raise UsageError(
            f"no CIFAR-100 in {self.root}: point --data.init_args.root at the folder that contains "
            f"cifar-100-python/ (or train/ and test/ in class folders), or set --data.init_args.download true"
            f"{advice(self.root)}"
        )

    def read_class_names(self) -> list[str]:
        meta = self.folder / "meta"
        with naming(meta):
            if not meta.is_file():
                return class_names_of(split_folder(self.folder, "train"))
        [names] = read_entries(meta, "fine_label_names")
        return check_class_names(names, self.num_classes, meta)


def _read_pickle(path: Path, num_classes: int) -> Split:
    """Read images and labels from one of CIFAR's pickles; raise UsageError if they have another form."""
    data, labels = read_entries(path, "data", "fine_labels")
    if not isinstance(data, np.ndarray):
        raise UsageError(f"{path}: data is {type(data).__name__}, not uint8 (N, 3072): download the file again")
    if data.dtype != np.uint8 or data.shape[1:] != (3072,) or len(data) == 0:
        raise UsageError(f"{path}: data is {data.dtype} {data.shape}, not uint8 (N, 3072): download the file again")
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not _are_labels(labels, len(data), num_classes):
        raise UsageError(
            f"{path}: fine_labels are not {len(data)} integers below {num_classes}: download the file again"
        )
    return Split(torch.from_numpy(data.reshape(-1, 3, 32, 32)), torch.tensor(labels))


def _are_labels(labels: Any, count: int, num_classes: int) -> bool:
    if not isinstance(labels, list | tuple) or len(labels) != count:
        return False
    return all(type(label) is int and 0 <= label < num_classes for label in labels)
