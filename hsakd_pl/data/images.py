"""Image files: obtaining them, opening them whatever their mode, decoding many of them at once."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL starts Ghostscript for some of the others
MAX_PIXELS = 8192 * 6144  # those of a 50 megapixel camera: reading so many takes 1 GB in WebP, less in others
ORIENTATION, WHITE_IS_ZERO, BITS, SIGNED, TILE = 274, 262, 258, 339, (322, 323)  # tags of EXIF and TIFF
LEVELS = [round(value / 257) for value in range(2**16)]  # of grey: 16 bits in 8
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientation: what PIL calls the turn that undoes it


def obtain(data_set: str, root: Path, action: Callable[[], object]) -> None:
    """Let torchvision download or unpack something into ``root``; raises UsageError if that fails."""
    try:
        action()
    except (OSError, RuntimeError) as error:  # no network, wrong checksum, missing archive, full disk
        message = f"{data_set} could not be obtained in {root} ({error}): put a complete copy there by hand"
        raise UsageError(message) from error


@contextmanager
def header(path: str) -> Iterator[ImageFile.ImageFile]:
    """Open a file whose pixels are not decoded yet; raises UsageError naming it for all that fails in the block too."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > 8 * MAX_PIXELS:  # 16 bits, RGBA, uncompressed
            raise ValueError(f"it is too large a file, or none: no image of at most {MAX_PIXELS:,} pixels")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UsageError:
        raise
    except Exception as error:  # a broken file can make PIL raise anything
        raise UsageError(f"cannot decode the image {path} ({error}): replace or remove the file") from error


def check_pixels(image: Image.Image, size: int) -> None:
    """Raise ValueError where the header promises too many pixels, now or once the short side has ``size``."""
    tags = getattr(image, "tag_v2", {})  # a TIFF's tile is decoded whole
    width, height = (max(side, int(tags.get(tag, 0))) for side, tag in zip(image.size, TILE, strict=True))
    if max(width * height, size * size * max(width, height) // max(1, min(width, height))) > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many or too oblong: no image of at most {MAX_PIXELS:,}")


def orientation(image: Image.Image) -> int:
    """What EXIF or XMP data say of a picture, 1 for upright; 1 too where they are missing or broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as for broken files
        return 1


def open_image(path: str, size: int = 224) -> Image.Image:
    """Decode a photograph as :func:`rgb`, turned upright as its EXIF orientation says.

    ``size`` is the side that it will be resized to. Raises UsageError naming a file that cannot be decoded, has more
    than ``MAX_PIXELS`` or would have once it is resized.
    """
    with header(path) as image:
        check_pixels(image, size)
        picture, turn = rgb(image), UPRIGHT.get(orientation(image))  # which some files tell after their pixels
        return picture if turn is None else picture.transpose(Image.Transpose(turn))


def rgb(file: ImageFile.ImageFile) -> Image.Image:
    """Bring the first frame of a file to RGB: grey of more than 8 bits scaled by its range, white behind transparency.

    Raises ValueError for a mode whose values have no defined range.
    """
    if file.format == "PNG":  # whose check sums PIL passes over when it decodes
        with Image.open(file.filename, formats=["PNG"]) as again:
            again.verify()
    image: Image.Image = file
    tags, key = getattr(file, "tag_v2", {}), file.info.get("transparency")
    wide = file.mode.startswith("I;16") or (file.mode, file.format) in (("I", "PNG"), ("I", "PPM"))
    if 2 in tags.get(SIGNED, ()) or (file.mode[0] in "IF" and not wide):
        raise ValueError(f"its mode {file.mode} has no defined range of values: save it with 8 or 16 bits")
    if key is not None and file.format == "PNG":  # PIL brings pixels to 8 bits, and not what is transparent
        stored = str(file.tile[0][3])
        scaled = key * {"L;2": 85, "L;4": 17}.get(stored, 1)
        file.info["transparency"] = tuple(level // 256 for level in key) if stored == "RGB;16B" else scaled
    if wide:
        to_16_bits = 65535 / (2 ** tags.get(BITS, (16,))[0] - 1)
        values = file.convert("I").point(lambda value: value * to_16_bits)
        image = values.point(LEVELS, "L")
        if tags.get(WHITE_IS_ZERO) == 0:
            image = ImageOps.invert(image)
        if key is not None:
            image.putalpha(values.point([255 * (value != key) for value in range(2**16)], "L"))
    if image.mode[-1] not in "Aa" and key is None:
        return image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def decode_images(paths: Sequence[str], size: int, transform: Callable[[Image.Image], Tensor] | None = None) -> Tensor:
    """uint8 (N, 3, size, size): what ``transform`` makes of files that :func:`open_image` opened.

    Without it as they are stored, EXIF orientation is left alone. Raises UsageError naming a file that is broken, or,
    before it is decoded, of another size.
    """

    def decode(path: str) -> Tensor:
        if transform is not None:
            return transform(open_image(path, size))
        with header(path) as image:
            if image.size != (size, size):
                found = " x ".join(map(str, reversed(image.size)))
                raise UsageError(
                    f"the image {path} has {found} pixels, not {size} x {size}: resize it, or take "
                    "ImageFolderDataModule, which does"
                )
            check_pixels(image, size)
            return pil_to_tensor(rgb(image))

    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        for row, image in zip(images, tracked(pool.map(decode, paths), len(paths), "Decoding images"), strict=True):
            row.copy_(image)
    return images
