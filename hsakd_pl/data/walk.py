"""Find the images and class folders below a folder, for all data sets and ``predict``.

Hidden names and links are treated as by :mod:`hsakd_pl.files.walk`.
"""

import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import accumulate, chain
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError, counted, did_you_mean
from hsakd_pl.files import naming
from hsakd_pl.files.walk import visible, visible_names, walk, with_parents

HEIC_EXTENSIONS = (".heic", ".heif")  # of the camera of a telephone
WITHOUT_ENDING = "no ending"
MOST_ENDINGS = 5  # that a message names


def reads_heic() -> bool:
    """Return True if pi-heif is installed, with which Pillow decodes HEIC."""
    return find_spec("pi_heif") is not None


IMAGE_EXTENSIONS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", *(HEIC_EXTENSIONS if reads_heic() else ()))


def canonical(name: str) -> str:
    """Return a name in the Unicode form NFC: file systems and archives of macOS store other forms of equal names."""
    return unicodedata.normalize("NFC", name)


def class_names_of(folder: Path) -> list[str]:
    """Return the names of the class folders in ``folder``, as :func:`class_paths` does."""
    return list(class_paths(folder))


def class_paths(folder: Path) -> dict[str, Path]:
    """Return the class folders in ``folder`` by their names in Unicode's form NFC; empty if it is missing.

    They are sorted by these names, so as by torchvision's ImageFolder unless the file system stores other forms. Raises
    UsageError for a broken link, without whose class the following classes would get other labels, and for two names
    that look equal.
    """
    with naming(folder):
        if not folder.is_dir():
            return {}
        classes = [folder / name for name in visible_names(_subfolders(folder))]
    by_name: dict[str, Path] = {}
    for path in classes:
        other = by_name.setdefault(canonical(path.name), path)
        if other != path:
            raise UsageError(
                f"{folder} contains {path.name} twice, in two Unicode forms ({other.name!a}, {path.name!a}): merge the "
                "two"
            )
    return dict(sorted(by_name.items()))


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, without links to folders that contain it."""
    parents = with_parents(folder)
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and visible(entry.name):
                if not os.path.exists(entry.path):
                    raise UsageError(f"{entry.path} is a broken link: repair or remove it")
                if os.path.realpath(entry.path) in parents:
                    continue
            if entry.is_dir():
                names.append(entry.name)
    return names


def is_image(name: str) -> bool:
    """Return True if a file's name ends as those of images do."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def divide(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of images, and the other visible names, of sorted names of files."""
    if _are_images(names):
        return names, []
    visible = visible_names(names)
    images = [name for name in visible if is_image(name)]
    return images, [name for name in visible if not is_image(name)]


def _are_images(names: list[str]) -> bool:
    """Return True if all of the sorted names are visible and end as images do.

    Calls for each of a million names would take longer than listing them.
    """
    text = f"{'/'.join(names)}/".lower()
    are_visible = bisect_left(names, ".") == bisect_left(names, "/")  # no name is sorted between these
    counts = accumulate(text.count(f"{ending}/") for ending in IMAGE_EXTENSIONS)
    return are_visible and len(names) in counts


def contains_images(folder: Path, below: bool = False) -> bool:
    """Return True if there is an image in ``folder``, or with ``below`` in it or in a folder below it."""
    for _, names in walk(folder):
        if any(map(is_image, names)):
            return True
        if not below:
            return False
    return False


def images_below(*folders: Path) -> list[list[str]]:
    """Return the image files below each folder, sorted as by torchvision's ImageFolder.

    Logs the number of files with other extensions. Raises UsageError naming a folder that cannot be read.
    """
    common_folder = os.path.commonpath(folders or ["."])
    images_by_folder = []
    ignored: list[str] = []
    for folder in tracked(folders, len(folders), f"Looking for images below {common_folder}"):
        images: list[str] = []
        for place, names in sorted(walk(folder, sorted)):
            image_names, other_names = divide(names)
            prefix = os.path.join(place, "")
            images += [prefix + name for name in image_names]
            ignored += other_names
        images_by_folder.append(images)
    if ignored:
        extensions = " ".join(IMAGE_EXTENSIONS)
        rank_zero_info(
            f"Ignored {counted(len(ignored), 'file')} below {common_folder} ({endings_of(ignored)}): images end in "
            f"{extensions}"
        )
    return images_by_folder


def endings_of(names: Sequence[str]) -> str:
    """Return the most frequent endings of files with their numbers, and what reads those of HEIC.

    Examples:
        >>> endings_of(["a.avif", "b.AVIF", "c.txt"])
        '.avif 2, .txt 1'
    """
    endings = Counter(os.path.splitext(name)[1].lower() or WITHOUT_ENDING for name in names)
    listed = [f"{ending} {number:,}" for ending, number in endings.most_common(MOST_ENDINGS)]
    if len(endings) > MOST_ENDINGS:
        listed.append(f"{len(endings) - MOST_ENDINGS} more")
    return ", ".join(listed) + _heic_hint(endings)


def _heic_hint(endings: Iterable[str]) -> str:
    """Return how to read HEIC if one of the endings is, and pi-heif is missing; otherwise an empty string."""
    is_missing = not reads_heic() and any(ending in HEIC_EXTENSIONS for ending in endings)
    return "; pip install 'hsakd_pl[heic]' to read HEIC" if is_missing else ""


def _seen(folders: Sequence[Path]) -> str:
    """Return a phrase on the files below folders without images; an empty string if there are none."""
    names = [name for folder in folders for _, files in walk(folder) for name in files]
    return f" (files end in {endings_of(names)})" if names else ""


def image_paths(source: Path, option: str) -> list[str]:
    """Return every image file below a folder, sorted, or the image file that ``source`` is.

    Raises UsageError naming ``option`` if there is none.
    """
    endings = f"files that end in {' '.join(IMAGE_EXTENSIONS)}"
    with naming(source):
        if not source.exists():
            raise UsageError(f"{option}: {source} does not exist: check the path")
        if not source.is_dir():
            if not is_image(source.name):
                hint = _heic_hint([source.suffix.lower()])
                raise UsageError(f"{option}: {source} is neither a folder nor an image: name {endings}{hint}")
            return [str(source)]
    [images] = images_below(source)
    if not images:
        raise UsageError(f"{option}: no image below {source}{_seen([source])} ({endings})")
    return sorted(str(Path(image)) for image in images)


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the image files below ``folder/<class>/`` and their labels (N,), the positions in ``classes``.

    Names are equal if they are in Unicode's form NFC. Raises UsageError for a class without images, and for a folder
    with images that is none of the classes.
    """
    folders = class_paths(folder)
    names = [canonical(name) for name in classes]
    unknown = [name for name in folders if name not in set(names)]
    searched = [*names, *unknown]
    images_by_folder = images_below(*(folders.get(name, folder / name) for name in searched))
    images = dict(zip(searched, images_by_folder, strict=True))
    for name in unknown:
        if images[name]:
            raise UsageError(
                f"{folders[name]} is not one of the classes of the training folder: {did_you_mean(name, classes)}"
                "rename it, or move it elsewhere"
            )
    empty = [name for name in names if not images[name]]
    if empty:
        seen = _seen([folders[name] for name in empty if name in folders])
        remedy = f"images end in {' '.join(IMAGE_EXTENSIONS)}" if seen else "extract the archive again, completely"
        raise UsageError(f"{folder}: no image found for the classes {', '.join(empty)}{seen}: {remedy}")
    paths = list(chain.from_iterable(images[name] for name in names))
    counts = torch.tensor([len(images[name]) for name in names])
    return paths, torch.arange(len(names)).repeat_interleave(counts)
