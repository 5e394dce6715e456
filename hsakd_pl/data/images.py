"""Obtain data sets, open image files of any mode, and decode many of them at once."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL starts Ghostscript for some of the others
MAX_PIXELS = 8192 * 6144  # of a 50 megapixel camera; reading that many takes 1 GB in WebP and less in other formats
MAX_BYTES = 8 * MAX_PIXELS  # an uncompressed RGBA image of 16 bits per channel

# Tags of EXIF and TIFF
ORIENTATION = 274
PHOTOMETRIC = 262  # of a grey TIFF: 0 if white is zero
BITS_PER_SAMPLE = 258
SAMPLE_FORMAT = 339  # of a TIFF: 2 for signed integers
TILE_WIDTH = 322
TILE_LENGTH = 323

GREY_LEVELS = [round(value / 257) for value in range(2**16)]  # from 16 bits to 8
UPRIGHT = {  # EXIF's orientation: the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def obtain(data_set: str, root: Path, action: Callable[[], object]) -> None:
    """Let torchvision download or unpack a data set into ``root``; raise UsageError if that fails."""
    try:
        action()
    except (OSError, RuntimeError) as error:  # no network, wrong checksum, missing archive, full disk
        message = f"{data_set} could not be obtained in {root} ({error}): put a complete copy there by hand"
        raise UsageError(message) from error


@contextmanager
def header(path: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file without decoding it; raise UsageError naming it for any failure, also inside the block."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ValueError(f"it is not a regular file, or too large for an image of at most {MAX_PIXELS:,} pixels")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            yield image
    except UsageError:
        raise
    except Exception as error:  # a broken file can make PIL raise anything
        raise UsageError(f"cannot decode the image {path} ({error}): replace or remove the file") from error


def check_pixels(image: Image.Image, size: int) -> None:
    """Raise ValueError if an image has too many pixels, or would have after its short side is resized to ``size``."""
    tags = _tiff_tags(image)
    width = max(image.width, int(tags.get(TILE_WIDTH, 0)))  # a tile is decoded whole
    height = max(image.height, int(tags.get(TILE_LENGTH, 0)))
    short_side = max(1, min(width, height))
    resized_pixels = size * size * max(width, height) // short_side
    if max(width * height, resized_pixels) > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many or too oblong; the limit is {MAX_PIXELS:,} pixels")


def orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF or XMP data; 1, upright, if they are missing or broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken file can make PIL raise anything
        return 1


def open_image(path: str, size: int = 224) -> Image.Image:
    """Decode an image file to RGB, turned upright as its EXIF orientation says.

    Args:
        path: path of the file.
        size: side that the image will be resized to.

    Raises UsageError naming a file that cannot be decoded, or that has more than ``MAX_PIXELS`` pixels before or after
    it is resized.
    """
    with header(path) as image:
        check_pixels(image, size)
        picture = rgb(image)
        operation = UPRIGHT.get(orientation(image))  # read last, since some files store it after their pixels
        return picture if operation is None else picture.transpose(operation)


def rgb(file: ImageFile.ImageFile) -> Image.Image:
    """Convert the first frame of a file to RGB, with white behind transparent pixels.

    Grey levels of more than 8 bits are scaled by their range. Raises ValueError for a mode whose values have no defined
    range.
    """
    if file.format == "PNG":
        with Image.open(file.filename, formats=["PNG"]) as unread:
            unread.verify()  # the checksums, which PIL ignores when it decodes
    deep_grey = file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM"))
    signed = 2 in _tiff_tags(file).get(SAMPLE_FORMAT, ())
    if signed or (file.mode[0] in "IF" and not deep_grey):
        raise ValueError(f"its mode {file.mode} has no defined range of values: save it with 8 or 16 bits")
    transparent = file.info.get("transparency")  # the colour, the level or the palette indices that are transparent
    if transparent is not None and file.format == "PNG":
        file.info["transparency"] = _transparent_in_8_bits(file, transparent)
    image = _grey_in_8_bits(file, transparent) if deep_grey else file
    has_alpha = image.mode[-1] in "Aa"
    if not has_alpha and transparent is None:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    background = Image.new("RGB", rgba.size, "white")
    background.paste(rgba, mask=rgba)
    return background


def _tiff_tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF by number; an empty dictionary for other formats."""
    return getattr(image, "tag_v2", {})


def _transparent_in_8_bits(file: ImageFile.ImageFile, transparent: Any) -> Any:
    """Scale a PNG's transparent colour to 8 bits, to which PIL scales the pixels alone."""
    stored_mode = str(file.tile[0][3])
    if stored_mode == "RGB;16B":
        return tuple(level // 256 for level in transparent)
    if stored_mode == "L;2":
        return 85 * transparent
    if stored_mode == "L;4":
        return 17 * transparent
    return transparent


def _grey_in_8_bits(file: ImageFile.ImageFile, transparent: int | None) -> Image.Image:
    """Scale grey levels of more than 8 bits to 8, with an alpha channel if one of them is transparent."""
    tags = _tiff_tags(file)
    bits, *_ = tags.get(BITS_PER_SAMPLE, (16,))
    to_16_bits = 65535 / (2**bits - 1)
    levels = file.convert("I").point(lambda level: level * to_16_bits)
    image = levels.point(GREY_LEVELS, "L")
    if tags.get(PHOTOMETRIC) == 0:
        image = ImageOps.invert(image)
    if transparent is not None:
        alpha = [0 if level == transparent else 255 for level in range(2**16)]
        image.putalpha(levels.point(alpha, "L"))
    return image


def decode_images(paths: Sequence[str], size: int, transform: Callable[[Image.Image], Tensor] | None = None) -> Tensor:
    """Decode image files in parallel to uint8 (N, 3, size, size).

    Args:
        paths: paths of the files.
        size: side of the result.
        transform: resizes an image that :func:`open_image` has opened. If None, files must have the size already, and
            their EXIF orientation is ignored.

    Raises UsageError naming a file that is broken or, before it is decoded, has another size.
    """

    def decode(path: str) -> Tensor:
        return _decode_unresized(path, size) if transform is None else transform(open_image(path, size))

    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        decoded = tracked(pool.map(decode, paths), len(paths), "Decoding images")
        for row, image in zip(images, decoded, strict=True):
            row.copy_(image)
    return images


def _decode_unresized(path: str, size: int) -> Tensor:
    with header(path) as image:
        if image.size != (size, size):
            raise UsageError(
                f"the image {path} has {image.height} x {image.width} pixels, not {size} x {size}: resize it, or use "
                "ImageFolderDataModule, which resizes images"
            )
        check_pixels(image, size)
        return pil_to_tensor(rgb(image))
