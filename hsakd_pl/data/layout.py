"""Where a folder keeps the class folders of its splits."""

from pathlib import Path
from typing import NamedTuple

from hsakd_pl.data.walk import class_names_of
from hsakd_pl.errors import UsageError

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # by name, in any case


class Layout(NamedTuple):
    """Folders of class folders: ``train``, ``test``, and ``val`` where validation has a folder of its own beside it."""

    train: Path | None
    val: Path | None
    test: Path | None


def find_layout(root: Path) -> Layout:
    """Look for ``train/``, ``val/`` (or ``valid/``) and ``test/``; without any of them ``root`` itself is ``train``.

    Raises UsageError where two folders would be the same split.
    """
    found: dict[str, Path] = {}
    names = class_names_of(root)
    for name in names:
        if (split := SPLITS.get(name.lower())) and class_names_of(root / name):
            if split in found:
                raise UsageError(f"{found[split]} and {root / name} would both be the {split} split: keep one of them")
            found[split] = root / name
    if not found and any(name.lower() not in SPLITS for name in names):
        return Layout(root, None, None)
    train, val, test = (found.get(split) for split in ("train", "val", "test"))
    return Layout(train, val, test) if test else Layout(train, None, val)


def advice(root: Path) -> str:
    """What the error of another data set adds where ``root`` holds class folders."""
    train = find_layout(root).train
    return f"; {train} looks like class folders of your own, which ImageFolderDataModule takes" if train else ""
