"""CIFAR-100 (Krizhevsky 2009), 32 x 32, from its pickles or from class folders of images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR100

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.download import fetch
from hsakd_pl.data.images import class_folders, class_names_of, decode_images
from hsakd_pl.data.pickles import load_plain
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError


class CIFAR100DataModule(ImageDataModule):
    """CIFAR-100 with the paper's augmentation: random crop with 4 pixels of padding, and flip (Sec. 4.1).

    Args:
        root: folder that holds ``cifar-100-python/``, or that folder itself, whatever its checksums; or class
            folders ``train/<class>/`` and ``test/<class>/`` of 32 x 32 images.
        download: fetch the data set into ``root`` with torchvision if it is not there.

    Other arguments: :class:`ImageDataModule`.
    """

    num_classes = 100
    image_size = 32
    mean = (0.5071, 0.4867, 0.4408)  # of the training images, as in the published code
    std = (0.2675, 0.2565, 0.2761)
    train_transform = PadCropFlip(padding=4)

    def __init__(self, root: str | Path = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.download = download
        if class_names := class_names_of(self.root / "train"):
            self.num_classes = len(class_names)

    def _pickles(self) -> Path | None:
        folders = (self.root / "cifar-100-python", self.root)
        return next((folder for folder in folders if (folder / "train").is_file()), None)

    def prepare_data(self) -> None:
        """Download if asked for and needed."""
        if self.download and self._pickles() is None and not class_names_of(self.root / "train"):
            fetch("CIFAR-100", self.root, lambda: CIFAR100(self.root, download=True))

    def read(self, train: bool) -> Split:
        name = "train" if train else "test"
        if (folder := self._pickles()) is not None:
            return _read_pickle(folder / name, self.num_classes)
        if class_names := class_names_of(self.root / "train"):
            paths, labels = class_folders(self.root / name, class_names)
            return Split(decode_images(paths, self.image_size), labels)
        raise UsageError(
            f"no CIFAR-100 in {self.root}: point --data.init_args.root at the folder that holds "
            f"cifar-100-python/ (or train/ and test/ in class folders), or set --data.init_args.download true"
        )

    def read_class_names(self) -> list[str]:
        if (folder := self._pickles()) is not None and (folder / "meta").is_file():
            return list(load_plain(folder / "meta")["fine_label_names"])
        return class_names_of(self.root / "train") or super().read_class_names()


def _read_pickle(path: Path, num_classes: int) -> Split:
    content = load_plain(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, not CIFAR-100's dict: fetch it again")
    entries = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    if missing := [key for key in ("data", "fine_labels") if key not in entries]:
        raise UsageError(
            f"{path} has no {' and '.join(missing)}: it is no file of CIFAR-100's python version"
        )
    data, labels = entries["data"], entries["fine_labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * 32 * 32,):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UsageError(f"{path}: data is {found}, not uint8 (N, 3072): fetch the file again")
    if len(labels) != len(data) or not all(isinstance(y, int) and 0 <= y < num_classes for y in labels):
        raise UsageError(
            f"{path}: fine_labels are not {len(data)} integers below {num_classes}: fetch the file again"
        )
    return Split(torch.from_numpy(data.reshape(-1, 3, 32, 32)), torch.tensor(labels))
