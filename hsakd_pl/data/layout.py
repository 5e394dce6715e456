"""Find the class folders of each split in a data set's folder."""

from pathlib import Path
from typing import NamedTuple

from hsakd_pl.data.walk import class_names_of
from hsakd_pl.errors import UsageError

SPLIT_OF_FOLDER = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # in lower case


class Layout(NamedTuple):
    """Folders that contain class folders: for training, for validation if that is not the test folder, for testing."""

    train: Path | None
    val: Path | None
    test: Path | None


def find_layout(root: Path) -> Layout:
    """Find ``train/``, ``val/`` (or ``valid/``) and ``test/`` in ``root``; without any of them, ``root`` is ``train``.

    Raises UsageError if two folders are the same split.
    """
    folders: dict[str, Path] = {}
    names = class_names_of(root)
    for name in names:
        split = SPLIT_OF_FOLDER.get(name.lower())
        if split is None or not class_names_of(root / name):
            continue
        if split in folders:
            raise UsageError(f"{folders[split]} and {root / name} are both the {split} split: keep one of them")
        folders[split] = root / name
    has_classes = any(name.lower() not in SPLIT_OF_FOLDER for name in names)
    if not folders and has_classes:
        return Layout(train=root, val=None, test=None)
    if "test" in folders:
        return Layout(folders.get("train"), folders.get("val"), folders["test"])
    return Layout(folders.get("train"), val=None, test=folders.get("val"))


def advice(root: Path) -> str:
    """Return a hint for another data set's error if ``root`` contains class folders; otherwise an empty string."""
    train = find_layout(root).train
    if train is None:
        return ""
    return f"; {train} contains class folders: ImageFolderDataModule can read them"
