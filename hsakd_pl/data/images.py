"""Obtain data sets, open image files of any mode within limits, and decode many of them at once."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError, features
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl.data.bands import upright_bands
from hsakd_pl.data.fetched import Picture, Source
from hsakd_pl.data.limits import MAX_BYTES, MAX_PIXELS, PixelBudget, Take
from hsakd_pl.data.picture import orientation, rgb, tiff_tags, upright_rgb
from hsakd_pl.data.progress import tracked
from hsakd_pl.data.walk import reads_heic
from hsakd_pl.errors import UsageError

BLOCK = 16  # images that a thread decodes at one time
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL starts Ghostscript for some of the others

# Tags of a TIFF
TILE_WIDTH = 322
TILE_LENGTH = 323

Opened = Image.Image | Tensor  # an opened picture: of PIL's if it is grey or RGB, otherwise uint8 (C, H, W)


def obtain(data_set: str, root: Path, action: Callable[[], object]) -> None:
    """Let torchvision download or unpack a data set into ``root``; raise UsageError if that fails."""
    try:
        action()
    except (OSError, RuntimeError) as error:  # no network, wrong checksum, missing archive, full disk
        message = f"{data_set} could not be obtained in {root} ({error}): put a complete copy there by hand"
        raise UsageError(message) from error


@cache
def image_formats() -> tuple[str, ...]:
    """Return the formats that are decoded: AVIF if Pillow was built with it, HEIF if pi-heif is installed."""
    formats = [*IMAGE_FORMATS]
    if "avif" in features.get_supported():
        formats.append("AVIF")
    if reads_heic():
        from pi_heif import register_heif_opener

        register_heif_opener()
        formats.append("HEIF")
    return tuple(formats)


@contextmanager
def stream(source: str | os.PathLike[str] | bytes) -> Iterator[IO[bytes]]:
    """Open a file, or the content of one; raise ValueError if it cannot be that of an image within the limits."""
    content = source if isinstance(source, bytes) else None
    status = None if content is not None else os.stat(source)
    size = len(content) if content is not None else status.st_size  # type: ignore[union-attr]  # one of them is set
    if size > MAX_BYTES or (status and not stat.S_ISREG(status.st_mode)):
        raise ValueError(f"it is not a regular file, or too large for an image of at most {MAX_PIXELS:,} pixels")
    with BytesIO(content) if content is not None else open(source, "rb") as file:
        yield file


@contextmanager
def header(source: Source) -> Iterator[ImageFile.ImageFile]:
    """Open an image without decoding it; raise UsageError naming it for any failure, also inside the block."""
    content = source.content if isinstance(source, Picture) else source
    try:
        if isinstance(content, Image.Image):
            yield content  # type: ignore[misc]  # only files of some formats are asked for more
            return
        with stream(content) as file, Image.open(file, formats=image_formats()) as image:
            yield image
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        formats = ", ".join(image_formats())
        raise UsageError(
            f"cannot decode the image {source} (it is none of {formats}, or broken): replace it"
        ) from error
    except Exception as error:  # a broken file can make PIL raise anything
        raise UsageError(f"cannot decode the image {source} ({error}): replace or remove the file") from error


def pixels_of_memory(channels: int) -> int:
    """Return how many pixels of at most four bytes a pixel of an image takes."""
    return (channels + 3) // 4


def check_pixels(image: Image.Image, size: int, channels: int = 3) -> None:
    """Raise ValueError if an image has too many pixels, or would have after its short side is resized to ``size``."""
    tags = tiff_tags(image)
    width = max(image.width, int(tags.get(TILE_WIDTH, 0)))  # a tile is decoded whole
    height = max(image.height, int(tags.get(TILE_LENGTH, 0)))
    short_side = max(1, min(width, height))
    resized_pixels = size * size * max(width, height) // short_side
    most = MAX_PIXELS // pixels_of_memory(channels)
    if max(width * height, resized_pixels) > most:
        raise ValueError(f"{width} x {height} pixels are too many or too oblong; the limit is {most:,} pixels")


def open_image(path: Source, size: int = 224, take: Take | None = None, channels: int = 3) -> Opened:
    """Decode an image file to RGB as viewers show it: upright, with white behind transparent pixels.

    With one channel, its grey levels are returned. With other numbers than 1 and 3 the result is a uint8 tensor
    (channels, H, W) of the bands of the file, such as RGBA, or of the frames of a grey TIFF, since PIL multiplies
    colours by an alpha channel when it resizes.

    Args:
        path: path of the file, or a :class:`Picture` that was fetched from a table or a data set.
        size: side in pixels that the image will be resized to.
        take: called with the number of pixels before they are decoded, to wait for memory.
        channels: number of channels.

    Returns:
        Image in the mode RGB or L, or a uint8 tensor (channels, H, W).

    Raises:
        UsageError: naming a file that cannot be decoded, or that has more than ``MAX_PIXELS`` pixels before or after it
            is resized.

    Examples:
        >>> open_image("photo.jpg").mode
        'RGB'
    """
    with header(path) as image:
        check_pixels(image, size, channels)
        check_contents(path, image)
        if take is not None:
            take(image.width * image.height * pixels_of_memory(channels))
        if channels == 3:
            return upright_rgb(image)
        bands = upright_bands(image, channels)
        return bands[0] if channels == 1 else torch.cat([pil_to_tensor(band) for band in bands])


def is_upright_rgb_jpeg(image: Image.Image) -> bool:
    """Return True for a JPEG that decoders without EXIF data and other colours than RGB show as viewers do."""
    return image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1


def check_contents(source: Source, image: Image.Image) -> None:
    """Raise an error for a PNG with a wrong checksum, which PIL ignores when it decodes."""
    content = source.content if isinstance(source, Picture) else source
    if image.format == "PNG" and not isinstance(content, Image.Image):
        with stream(content) as file, Image.open(file, formats=["PNG"]) as unread:
            unread.verify()


def read_bytes(source: Source) -> np.ndarray:
    """Return the bytes of a file, or of the content of one, as uint8 (n,)."""
    content = source.content if isinstance(source, Picture) else source
    if isinstance(content, bytes):
        return np.frombuffer(bytearray(content), np.uint8)  # writable, as PyTorch wants it
    return np.fromfile(content, np.uint8)  # type: ignore[arg-type]  # opened images are not asked for


def decode_images(
    paths: Sequence[Source], size: int, transform: Callable[[Opened], Tensor] | None = None, channels: int = 3
) -> Tensor:
    """Decode image files in parallel to uint8 (N, channels, size, size), within a :class:`PixelBudget`.

    Args:
        paths: paths of the files, or pictures that are fetched.
        size: side of the result.
        transform: resizes an image that :func:`open_image` has opened. If None, files must have the size already, and
            their EXIF orientation is ignored, and they are read as RGB.
        channels: number of channels.

    Raises UsageError naming a file that is broken or, before it is decoded, has another size.
    """

    budget = PixelBudget(between_processes=False)

    def decode(path: Source) -> Tensor:
        if transform is None:
            return _decode_unresized(path, size)
        with budget.lease() as take:
            return transform(open_image(path, size, take, channels))

    def decode_block(start: int) -> list[Tensor]:
        return [decode(path) for path in paths[start : start + BLOCK]]

    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    starts = range(0, len(paths), BLOCK)
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        decoded = tracked(pool.map(decode_block, starts), len(starts), "Decoding images")
        for row, image in zip(images, chain.from_iterable(decoded), strict=True):
            row.copy_(image)
    return images


def _decode_unresized(path: Source, size: int) -> Tensor:
    with header(path) as image:
        if image.size != (size, size):
            raise UsageError(
                f"the image {path} has {image.height} x {image.width} pixels, not {size} x {size}: resize it, or use "
                "ImageFolderDataModule, which resizes images"
            )
        check_pixels(image, size)
        check_contents(path, image)
        return pil_to_tensor(rgb(image))
