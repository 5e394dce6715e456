"""Read a picture as viewers show it. Needs only Pillow and NumPy, because model cards contain this code."""

from typing import Any

import numpy
from PIL import Image, ImageFile, ImageOps

# Tags of EXIF and TIFF
ORIENTATION = 274
PHOTOMETRIC = 262  # of a grey TIFF: 0 if white is zero
BITS_PER_SAMPLE = 258
SAMPLE_FORMAT = 339  # of a TIFF: 2 for signed integers

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


def read_pixels(path: str, resize: int, size: int) -> Any:
    """Read a picture, resize its short side and cut out its centre: an array of uint8 (3, size, size)."""
    with open(path, "rb") as file, Image.open(file) as opened:
        picture = upright_rgb(opened)
    return numpy.ascontiguousarray(numpy.asarray(central(picture, resize, size)).transpose(2, 0, 1))


def central(picture: Image.Image, resize: int, size: int) -> Image.Image:
    """Resize the short side of a picture and cut out its centre of (size, size) pixels."""
    side = min(picture.size)
    width, height = (resize * length // side for length in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def upright_rgb(file: ImageFile.ImageFile) -> Image.Image:
    """Convert the first frame of a file to RGB, turned upright, with white behind transparent pixels.

    The file must have been opened as a stream: Pillow maps files that it opens by name, and shears rotated TIFFs.
    Raises ValueError for a mode whose values have no defined range.
    """
    picture = rgb(file)
    operation = UPRIGHT.get(orientation(file))  # read last, since some files store it after their pixels
    return picture if operation is None else picture.transpose(operation)


def orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF or XMP data; 1, upright, if they are missing or broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken file can make PIL raise anything
        return 1


def rgb(file: ImageFile.ImageFile) -> Image.Image:
    """Convert the first frame of a file to RGB, with white behind transparent pixels.

    Grey levels of more than 8 bits are scaled by their range. Raises ValueError for a mode whose values have no defined
    range.
    """
    deep_grey = file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM"))
    signed = 2 in tiff_tags(file).get(SAMPLE_FORMAT, ())
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


def tiff_tags(image: Image.Image) -> Any:
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
    tags = tiff_tags(file)
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
