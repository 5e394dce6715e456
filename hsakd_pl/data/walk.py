"""Find the images and class folders below a folder, by one rule for all data sets and ``predict``.

Hidden names (which begin with a dot) and files of operating systems are ignored. Symbolic links are followed; a folder
is never entered twice, nor is one that contains it, so that loops end. A broken link counts as a file, so that opening
it raises an error.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming

IMAGE_EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif")
SYSTEM_NAMES = {  # what operating systems and network storage put into folders, in lower case
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recycle",
    "@tmp",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


def visible(name: str) -> bool:
    """Return True if a name is neither hidden nor one of an operating system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM_NAMES


def class_names_of(folder: Path) -> list[str]:
    """Return the names of the class folders in ``folder``, sorted as by torchvision's ImageFolder; empty if missing.

    Raises UsageError for a broken link: without its class, the following classes would get other labels.
    """
    with naming(folder):
        if not folder.is_dir():
            return []
        paths = [path for path in folder.iterdir() if visible(path.name)]
        for path in paths:
            if not path.exists():
                raise UsageError(f"{path} is a broken link: repair or remove it")
        parents = _with_parents(folder)
        return sorted(path.name for path in paths if path.is_dir() and path.resolve() not in parents)


def images_below(*folders: Path) -> list[list[str]]:
    """Return the image files below each folder, sorted as by torchvision's ImageFolder.

    Logs the number of files with other extensions. Raises UsageError naming a folder that cannot be read.
    """
    common_folder = os.path.commonpath(folders or ["."])
    images = []
    num_ignored = 0
    for folder in tracked(folders, len(folders), f"Looking for images below {common_folder}"):
        files = sorted(_files_below(folder))
        image_files = [(place, name) for place, name in files if name.lower().endswith(IMAGE_EXTENSIONS)]
        images.append([os.path.join(place, name) for place, name in image_files])
        num_ignored += len(files) - len(image_files)
    if num_ignored:
        extensions = " ".join(IMAGE_EXTENSIONS)
        rank_zero_info(f"Ignored {num_ignored:,} files below {common_folder} that do not end in {extensions}")
    return images


def _files_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (folder, name) of every visible file below a folder."""
    entered = _with_parents(folder)
    for place, subfolders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        candidates = sorted(filter(visible, subfolders))
        subfolders.clear()  # os.walk enters what is left in this list
        for name in candidates:
            subfolder = Path(place, name).resolve()
            if subfolder not in entered:
                entered.add(subfolder)
                subfolders.append(name)
        for name in filter(visible, names):
            yield place, name


def _with_parents(folder: Path) -> set[Path]:
    """Return a folder and all that contain it, with links resolved."""
    resolved = Path(os.path.realpath(folder))
    return {resolved, *resolved.parents}


def _raise_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from error


def image_paths(folder: Path, option: str) -> list[str]:
    """Return every image file below ``folder``, sorted; raise UsageError naming ``option`` if there is none."""
    [images] = images_below(folder)
    if not images:
        raise UsageError(f"{option}: no image below {folder} (files that end in {' '.join(IMAGE_EXTENSIONS)})")
    return sorted(str(Path(image)) for image in images)


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the image files below ``folder/<class>/`` and their labels (N,), the positions in ``classes``.

    Raises UsageError for a class without images, and for a folder with images that is none of the classes.
    """
    unknown = [name for name in class_names_of(folder) if name not in set(classes)]
    names = [*classes, *unknown]
    images = dict(zip(names, images_below(*(folder / name for name in names)), strict=True))
    for name in unknown:
        if images[name]:
            raise UsageError(f"{folder / name} is not one of the classes of the training folder: move it elsewhere")
    empty = [name for name in classes if not images[name]]
    if empty:
        raise UsageError(
            f"{folder}: no image found for the classes {', '.join(empty)}: extract the archive again, completely"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        paths += images[name]
        labels += [label] * len(images[name])
    return paths, torch.tensor(labels)
