"""Image files: obtaining them, finding them, opening them, decoding many of them at once."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl.errors import UsageError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a broken file


def obtain(data_set: str, root: Path, action: Callable[[], object]) -> None:
    """Let torchvision download or unpack something into ``root``; raises UsageError if that fails."""
    try:
        action()
    except (OSError, RuntimeError) as error:  # no network, wrong checksum, missing archive, full disk
        message = f"{data_set} could not be obtained in {root} ({error}): put a complete copy there by hand"
        raise UsageError(message) from error


def open_image(path: str) -> Image.Image:
    """Decode a file as RGB, greyscale ones too; raises UsageError naming a file that cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise UsageError(f"cannot decode the image {path} ({error}): replace or remove the file") from error


def decode_images(paths: Iterable[str], size: int) -> Tensor:
    """uint8 (N, 3, size, size); raises UsageError naming a file that is broken or of another size."""

    def decode(path: str) -> Tensor:
        image = pil_to_tensor(open_image(path))
        if image.shape[1:] != (size, size):
            found = " x ".join(map(str, image.shape[1:]))
            raise UsageError(f"the image {path} has {found} pixels, not {size} x {size}: resize it")
        return image

    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        return torch.stack(list(pool.map(decode, paths)))


def image_paths(folder: Path, option: str) -> list[str]:
    """Every image file below ``folder``, sorted; raises UsageError naming ``option`` if there is none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(str(path) for path in files if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise UsageError(f"{option}: no image below {folder} (looked for {' '.join(IMG_EXTENSIONS)})")
    return paths


def class_names_of(folder: Path) -> list[str]:
    """Names of the class folders in ``folder`` in the order of torchvision's ImageFolder; none if missing."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Image files below ``folder/<class>/`` and their labels (N,), the positions in ``classes``.

    Raises UsageError for a missing folder, a class without an image, a folder that is no known class.
    """
    if not class_names_of(folder):
        raise UsageError(
            f"{folder} is missing or holds no class folders: point --data.init_args.root at the data set's "
            f"folder, or extract its archive again, completely"
        )
    for name in sorted(set(class_names_of(folder)) - set(classes)):
        if any(path.is_file() for path in (folder / name).rglob("*")):
            raise UsageError(f"{folder / name} is none of the classes of the training folder")
    try:
        samples = make_dataset(folder, {name: label for label, name in enumerate(classes)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: {error}. Was the archive fully extracted?") from error
    return [path for path, _ in samples], torch.tensor([label for _, label in samples])
