"""Crop training pictures at random and resize them; of a JPEG, only what the crop keeps is decoded."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from hsakd_pl.data.fetched import Source
from hsakd_pl.data.images import Opened, check_pixels, header, is_upright_rgb_jpeg, open_image, read_bytes
from hsakd_pl.data.limits import Take
from hsakd_pl.files import compiled

CODE = compiled.Code("jpeg", [Path(__file__).with_name("jpeg.c")], ["-O3", "-fPIC"], libraries=["-ljpeg"])
END = (0xFF, 0xD9)  # the last bytes of a JPEG that is complete


@lru_cache
def library() -> ctypes.CDLL | None:
    """Load the function that decodes a box of a JPEG; log the reason and return None if that is impossible."""
    try:
        loaded = compiled.load(CODE)
    except compiled.FAILURES as error:
        rank_zero_info(
            "Decoding JPEGs by Pillow and whole, at half the speed of decoding random crops alone: that needs a C "
            f"compiler and the headers of libjpeg-turbo 2.1.5 or newer ({compiled.reason_of(error)})"
        )
        return None
    loaded.decode_box.argtypes = [ctypes.c_void_p, *[ctypes.c_long] * 7, ctypes.c_void_p]
    return loaded


@dataclass(frozen=True, eq=False)
class Jpeg:
    """An upright RGB JPEG that has been read, but not decoded.

    Args:
        source: where it was read from.
        content: bytes of the file, uint8 (n,).
        height: number of rows.
        width: number of columns.
    """

    source: Source
    content: np.ndarray
    height: int
    width: int

    def box(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return the pixels of a box, uint8 (3, height, width); raise UsageError naming a file that is broken."""
        decoder = library()
        pixels = torch.empty(height, width, 3, dtype=torch.uint8)
        place = (self.height, self.width, top, left, height, width)
        content = (self.content.ctypes.data, len(self.content))
        if decoder is None or decoder.decode_box(*content, *place, pixels.data_ptr()):
            image = open_image(self.source)  # also to name a broken file
            return pil_to_tensor(image)[:, top : top + height, left : left + width]
        return pixels.permute(2, 0, 1)


def open_for_crop(source: Source, size: int = 224, take: Take | None = None, channels: int = 3) -> Opened | Jpeg:
    """Read an upright RGB JPEG for :class:`RandomResizedCrop`, and decode any other image as :func:`open_image` does.

    Raises UsageError as :func:`open_image` does; of a JPEG that is broken, the crop raises it.
    """
    with header(source) as image:
        check_pixels(image, size, channels)
        width, height = image.size
        is_plain = channels == 3 and is_upright_rgb_jpeg(image)
    content = read_bytes(source) if is_plain else np.empty(0, np.uint8)
    if tuple(content[-2:]) != END:
        return open_image(source, size, take, channels)
    if take is not None:
        take(width * height)
    return Jpeg(source, content, height, width)


def reader_for(transform: nn.Module) -> Callable[..., Any]:
    """Return what opens images for a transform.

    It is :func:`open_for_crop` if the transform begins with :class:`RandomResizedCrop` and the library could be loaded,
    and otherwise :func:`open_image`.
    """
    while isinstance(transform, v2.Compose):
        transform = transform.transforms[0]
    crops_first = isinstance(transform, RandomResizedCrop)
    return open_for_crop if crops_first and library() is not None else open_image


class RandomResizedCrop(v2.RandomResizedCrop):
    """Crop as torchvision's class does, with the same random numbers; takes a :class:`Jpeg` too.

    Pixels of a :class:`Jpeg` differ by at most one of 256 levels, since tensors are resized in its place.
    """

    def forward(self, *inputs: Any) -> Any:
        image, *others = inputs
        if others or not isinstance(image, Jpeg):
            return super().forward(*inputs)
        box = self.make_params([torch.empty(3, image.height, image.width, device="meta")])
        return resize(image.box(**box), self.size, self.interpolation, antialias=self.antialias)
