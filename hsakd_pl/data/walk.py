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

from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError

SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
SYSTEM |= {"@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"}  # in lower case


ENDINGS = (*IMG_EXTENSIONS, ".gif", ".jfif")


def visible(name: str) -> bool:
    """Whether a name is neither hidden nor a system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM


def class_names_of(folder: Path) -> list[str]:
    """Names of the class folders in ``folder`` in the order of torchvision's ImageFolder; none if missing.

    Raises UsageError for a link that leads nowhere: without its class, others would have its number.
    """
    if not folder.is_dir():
        return []
    entered, found = _above(folder), [path for path in folder.iterdir() if visible(path.name)]
    if broken := [path for path in found if not path.exists()]:
        raise UsageError(f"{broken[0]} is a link that leads nowhere: mend or remove it")
    return sorted(path.name for path in found if path.is_dir() and path.resolve() not in entered)


def images_below(*folders: Path) -> list[list[str]]:
    """Image files below each folder in the order of torchvision's ImageFolder; logs how many have other endings.

    Raises UsageError naming a folder that cannot be read.
    """
    images, others = [], 0
    for folder in tracked(folders, len(folders), f"Looking for images below {os.path.commonpath(folders or ['.'])}"):
        entered, files = _above(folder), []
        for place, inside, names in os.walk(folder, onerror=_refuse, followlinks=True):
            found, inside[:] = sorted(filter(visible, inside)), []
            for name in found:
                if (inner := Path(place, name).resolve()) not in entered:
                    entered.add(inner)
                    inside.append(name)
            files += [(place, name) for name in filter(visible, names)]
        images.append([os.path.join(*file) for file in sorted(files) if file[1].lower().endswith(ENDINGS)])
        others += len(files) - len(images[-1])
    if others:
        place = os.path.commonpath(folders or ["."])
        rank_zero_info(f"files below {place} that do not end in {' '.join(ENDINGS)}: {others:,} left out")
    return images


def _above(folder: Path) -> set[Path]:
    """A folder and all that hold it, without links."""
    real = Path(os.path.realpath(folder))
    return {real, *real.parents}


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from error


def image_paths(folder: Path, option: str) -> list[str]:
    """Every image file below ``folder``, sorted; raises UsageError naming ``option`` if there is none."""
    [images] = images_below(folder)
    if not images:
        raise UsageError(f"{option}: no image below {folder} (looked for {' '.join(ENDINGS)})")
    return sorted(str(Path(image)) for image in images)


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Image files below ``folder/<class>/`` and their labels (N,), the positions in ``classes``.

    Raises UsageError for a class without an image, and for a folder with images that is no known class.
    """
    names = [*classes, *(name for name in class_names_of(folder) if name not in set(classes))]
    found = dict(zip(names, images_below(*(folder / name for name in names)), strict=True))
    for name in names[len(classes) :]:
        if found[name]:
            raise UsageError(f"{folder / name} is none of the classes of the training folder")
    if empty := [name for name in classes if not found[name]]:
        message = f"{folder}: Found no valid file for the classes {', '.join(empty)}"
        raise UsageError(f"{message}. Was the archive fully extracted?")
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return [path for name in classes for path in found[name]], torch.tensor(labels)
