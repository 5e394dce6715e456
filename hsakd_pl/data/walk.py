"""Which files below a folder are images, and which folders are classes: one rule for all data sets and ``predict``.

Hidden names (those beginning with a dot) and what systems leave behind are neither. Symbolic links are followed; below
one folder no folder is entered twice, nor one that holds it, so that loops end. A link that leads nowhere counts as a
file, so that whoever opens it says so.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from hsakd_pl.errors import UsageError

SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
SYSTEM |= {"@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"}  # in lower case


def visible(name: str) -> bool:
    """Whether a name is neither hidden nor a system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM


def class_names_of(folder: Path) -> list[str]:
    """Names of the class folders in ``folder`` in the order of torchvision's ImageFolder; none if missing."""
    if not folder.is_dir():
        return []
    above = {folder.resolve(), *folder.resolve().parents}
    found = (path for path in folder.iterdir() if visible(path.name) and path.is_dir())
    return sorted(path.name for path in found if path.resolve() not in above)


def images_below(folder: Path) -> tuple[list[str], int]:
    """Image files below ``folder`` in the order of torchvision's ImageFolder, and how many files have other endings.

    Raises UsageError naming a folder that cannot be read.
    """
    entered = {folder.resolve(), *folder.resolve().parents}
    files = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        found, folders[:] = sorted(filter(visible, folders)), []
        for name in found:
            if (inner := Path(place, name).resolve()) not in entered:
                entered.add(inner)
                folders.append(name)
        files += [(place, name) for name in filter(visible, names)]
    images = [os.path.join(*file) for file in sorted(files) if file[1].lower().endswith(IMG_EXTENSIONS)]
    return images, len(files) - len(images)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from error


def _count(others: int, folder: Path) -> None:
    if others:
        rank_zero_info(f"files below {folder} that do not end in {' '.join(IMG_EXTENSIONS)}: {others:,} left out")


def image_paths(folder: Path, option: str) -> list[str]:
    """Every image file below ``folder``, sorted; raises UsageError naming ``option`` if there is none."""
    images, others = images_below(folder)
    _count(others, folder)
    if not images:
        raise UsageError(f"{option}: no image below {folder} (looked for {' '.join(IMG_EXTENSIONS)})")
    return sorted(str(Path(image)) for image in images)


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Image files below ``folder/<class>/`` and their labels (N,), the positions in ``classes``.

    Raises UsageError for a missing folder, a class without an image, a folder that is no known class.
    """
    if not (names := class_names_of(folder)):
        raise UsageError(
            f"{folder} is missing or holds no class folders: point --data.init_args.root at the data set's "
            f"folder, or extract its archive again, completely"
        )
    for name in sorted(set(names) - set(classes)):
        if images_below(folder / name) != ([], 0):
            raise UsageError(f"{folder / name} is none of the classes of the training folder")
    found = [images_below(folder / name) if name in names else ([], 0) for name in classes]
    if empty := [name for name, (images, _) in zip(classes, found, strict=True) if not images]:
        empty_names = ", ".join(empty)
        raise UsageError(
            f"{folder}: Found no valid file for the classes {empty_names}. Was the archive fully extracted?"
        )
    _count(sum(others for _, others in found), folder)
    labels = [label for label, (images, _) in enumerate(found) for _ in images]
    return [path for images, _ in found for path in images], torch.tensor(labels)
