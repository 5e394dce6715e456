"""Read image files of other channels than red, green and blue.

Needs only Pillow and NumPy, because model cards contain this code.
"""

from typing import Any

import numpy
from PIL import Image, ImageFile

from hsakd_pl.data.picture import UPRIGHT, central, orientation, rgb, tiff_tags, upright_rgb

EXTRA_SAMPLES = 338  # of a TIFF: 1 for an alpha that the colours are multiplied by


def read_channels(path: str, resize: int, size: int, channels: int) -> Any:
    """Read a picture, resize its short side and cut out its centre: an array of uint8 (channels, size, size)."""
    with open(path, "rb") as file, Image.open(file) as opened:
        bands = upright_bands(opened, channels)
    return numpy.stack([numpy.asarray(central(band, resize, size)) for band in bands])


def upright_bands(file: ImageFile.ImageFile, channels: int) -> list[Image.Image]:
    """Return a grey picture for each channel of a file, turned upright.

    One or three channels are the grey levels, or red, green and blue, of what viewers show (:func:`upright_rgb`). Other
    files must have as many bands, such as RGBA, whose values are kept as they are, or be a TIFF with as many grey
    frames, in which 16 bits are scaled to 8. Raises ValueError for others.
    """
    if channels in (1, 3):
        shown = upright_rgb(file)
        return [*(shown if channels == 3 else shown.convert("L")).split()]
    stored_bands = stored(file, channels)
    operation: Any = UPRIGHT.get(orientation(file))  # read last, since some files store it after their pixels
    return stored_bands if operation is None else [band.transpose(operation) for band in stored_bands]


def stored(file: ImageFile.ImageFile, channels: int) -> list[Image.Image]:
    """Return the bands of a file, or the frames of a TIFF; raise ValueError if they are not as many as the channels."""
    if channels == 4 and file.format == "TIFF" and file.mode == "RGB" and _raw_modes(file) == {"RGBX"}:
        file._mode = "RGBX"  # Pillow would drop the fourth band, such as infrared, if the file does not say what it is
    count = len(file.getbands())
    if file.format == "TIFF" and count == 1 and getattr(file, "n_frames", 1) == channels:
        return [frame(file, number, file.size) for number in range(channels)]
    if count != channels or "P" in file.getbands():
        raise ValueError(f"it has {count} bands, in the mode {file.mode}, instead of {channels}: save it with these")
    if 1 in tiff_tags(file).get(EXTRA_SAMPLES, ()):
        raise ValueError("its colours are multiplied by its alpha channel: save it without that")
    return [*file.split()]


def _raw_modes(file: ImageFile.ImageFile) -> set[Any]:
    """Return the modes in which the parts of a file are stored."""
    return {part.args[0] if isinstance(part.args, tuple) else part.args for part in file.tile}


def frame(file: ImageFile.ImageFile, number: int, size: tuple[int, int]) -> Image.Image:
    """Return a frame of a file as grey levels of 8 bits; raise ValueError if it has another size."""
    file.seek(number)
    if file.size != size:
        raise ValueError(f"its frame {number + 1} has another size than the first: save all of one size")
    return rgb(file).convert("L")
