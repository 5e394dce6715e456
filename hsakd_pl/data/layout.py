"""Find the class folders of each split in a data set's folder."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_pl.data.walk import class_names_of, class_paths, contains_images
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming
from hsakd_pl.files.walk import visible
from hsakd_pl.files.weights import shorten

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
# Words that data sets put around the name of a split: seg_train, test_images, Validation Set
AROUND = "x|seg|set|data|dataset|split|images?|imgs?|pictures|photos"


class Layout(NamedTuple):
    """Folders that contain class folders, or other places of splits, and folders with images that are not used.

    Args:
        train: folder of the classes for training.
        val: folder of the classes for validation, if that is not the test folder.
        test: folder of the classes for testing.
        ignored: folders in the data set's folder that contain images, but do not belong to a split.
    """

    train: Any
    val: Any
    test: Any
    ignored: tuple[Path, ...] = ()


def split_of(name: str) -> str | None:
    """Return the split that a folder's name usually denotes, in any case and with any number; None for others.

    Examples:
        >>> split_of("Training"), split_of("test_images"), split_of("val2017"), split_of("bullet_train")
        ('train', 'test', 'val', None)
    """
    letters = re.sub(r"[\W\d_]", "", name.lower())
    for split, words in SPLIT_WORDS.items():
        if re.fullmatch(f"({AROUND})?({'|'.join(words)})({AROUND})?", letters):
            return split
    return None


def find_layout(root: Path) -> Layout:
    """Find the folders of the splits in ``root``, by the usual names; without any of them, ``root`` is ``train``.

    A folder with a split's name is a class if it contains images, and no folders with images, next to other class
    folders. Raises UsageError if a folder could be both, if two folders are the same split, and if the classes contain
    the splits.
    """
    paths = class_paths(root)
    split_names = [name for name in paths if split_of(name)]
    other_names = [name for name in paths if name not in split_names]
    if not split_names:
        _check_undivided(paths)
        _check_pairs(paths)
        return Layout(root if paths else None, None, None)
    divided = [name for name in split_names if _contains_class_folders(paths[name])]
    flat = [name for name in split_names if name not in divided and contains_images(paths[name])]
    others = [name for name in other_names if contains_images(paths[name], below=True)]
    if others and not divided:
        _check_single_split(root, flat, others)
        return Layout(root, None, None)
    folders: dict[str, Path] = {}
    for name in divided:
        split = str(split_of(name))
        if split in folders:
            raise UsageError(f"{folders[split]} and {root / name} are both the {split} split: keep one of them")
        folders[split] = _innermost(paths[name], split)
    if others and not _share_classes(folders):
        raise UsageError(
            f"{root} contains {_listed(divided)} next to {_listed(others)}, so that {divided[0]} could be a split or a "
            f"class: move the others elsewhere if it is a split, or all into {root / 'train'} if it is a class"
        )
    ignored = tuple(paths[name] for name in [*flat, *others])
    if "test" in folders:
        return Layout(folders.get("train"), folders.get("val"), folders["test"], ignored)
    return Layout(folders.get("train"), None, folders.get("val"), ignored)


def _check_undivided(paths: dict[str, Path]) -> None:
    """Raise UsageError if one of several class folders contains the folders of two or more splits."""
    for path in paths.values() if len(paths) > 1 else ():
        with naming(path):
            subfolders = sorted(entry.name for entry in os.scandir(path) if visible(entry.name) and entry.is_dir())
        inner = [name for name in subfolders if split_of(name) and contains_images(path / name, below=True)]
        if len({split_of(name) for name in inner}) > 1:
            raise UsageError(
                f"{path} contains {_listed(inner)}, so that it could be a data set or a class: point "
                f"--data.init_args.root at it if it is a data set, or move its images to {inner[0]}/{path.name}/ and "
                "so on if it is a class"
            )


def _check_pairs(paths: dict[str, Path]) -> None:
    """Raise UsageError if the names of two folders differ only in the split, as those of birds_train and birds_test."""
    by_rest: dict[str, dict[str, str]] = {}  # name by split, by the rest of the name
    for name in paths:
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
        for number, word in enumerate(words):
            split = split_of(word)
            if split:
                rest = " ".join(words[:number] + words[number + 1 :]).lower()
                by_rest.setdefault(rest, {}).setdefault(split, name)
    for names in by_rest.values():
        if len(names) > 1:
            listed = _listed(sorted(names.values()))
            splits = " and ".join(f"{split}/" for split in names)
            raise UsageError(
                f"{paths[min(names.values())].parent} contains {listed}, which could be splits or classes: rename them "
                f"to {splits} if they are splits, or otherwise if they are classes"
            )


def _contains_class_folders(folder: Path) -> bool:
    """Return True if a folder contains folders, with images in them if there are also images next to them."""
    paths = class_paths(folder)
    if not paths or not contains_images(folder):
        return bool(paths)
    return any(contains_images(path, below=True) for path in paths.values())


def _innermost(folder: Path, split: str) -> Path:
    """Return the folder of a split inside of folders that contain nothing else, as in ``test_set/test_set/``."""
    names = class_names_of(folder)
    while len(names) == 1 and split_of(names[0]) == split and class_names_of(folder / names[0]):
        folder = folder / names[0]
        names = class_names_of(folder)
    return folder


def _share_classes(folders: dict[str, Path]) -> bool:
    """Return True if two or more splits have a class in common."""
    classes = [set(class_names_of(folder)) for folder in folders.values()]
    return len(classes) > 1 and bool(set.intersection(*classes))


def _check_single_split(root: Path, flat: list[str], others: list[str]) -> None:
    """Raise UsageError if folders of images are named after several splits."""
    if len({split_of(name) for name in flat}) > 1:
        raise UsageError(
            f"{root} contains {_listed(flat)} without class folders next to {_listed(others)}: sort the images of "
            "each split into class folders, or rename these folders if they are classes"
        )


def _listed(names: list[str]) -> str:
    """Return the first names of folders and the number of the others, for a message."""
    return shorten([f"{name}/" for name in names])


def split_folder(folder: Path, name: str) -> Path:
    """Return the folder of a split of a data set that calls it ``name``.

    If there is none of that name, it is the only folder whose name usually denotes the same split.
    """
    exact = folder / name
    with naming(exact):
        is_named_so = exact.exists()
    if is_named_so:
        return exact
    found = [path for path in class_paths(folder).values() if split_of(path.name) == split_of(name)]
    return _innermost(found[0], name) if len(found) == 1 else exact


def advice(root: Path) -> str:
    """Return a hint for another data set's error if ``root`` contains class folders; otherwise an empty string."""
    train = training_folder(root)
    if train is None:
        return ""
    return f"; {train} contains class folders: ImageFolderDataModule can read them"


def training_folder(root: Path) -> Path | None:
    """Return the training folder in ``root``; None if there is none, or if it is not clear."""
    try:
        folder: Path | None = find_layout(root).train
    except UsageError:
        return None
    return folder
