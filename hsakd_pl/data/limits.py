"""Bound the size of pictures, and the pixels that threads or worker processes hold decoded at one time."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int64
from typing import Any

from hsakd_pl.errors import UsageError, require

MAX_PIXELS = 8192 * 6144  # of a 50 megapixel camera; reading that many takes 1 GB in WebP and less in other formats
MAX_SIDE = int(MAX_PIXELS**0.5)  # of a square picture
MAX_BYTES = 8 * MAX_PIXELS  # of a file: an uncompressed RGBA image of 16 bits per channel
MAX_INPUT_SIDE = 4096  # of a network's images; a map of 32 channels takes 2 GB then
MAX_CHANNELS = 512  # of the spectra of imaging spectrometers
MAX_BATCH_BYTES = 2**31  # of a batch in uint8: 14,000 images of 224 x 224

LIMIT = 2 * MAX_PIXELS  # two of the largest pictures, or eight of 12 megapixels; they take at most 2 GB
NEGLIGIBLE = LIMIT // 128  # pixels of a picture that never waits
Take = Callable[[int], None]  # waits until a number of pixels may be decoded


def check_side(option: str, side: int) -> None:
    """Raise UsageError unless a square picture may have this side."""
    require(1 <= side <= MAX_SIDE, option, side, f"from 1 to {MAX_SIDE}")


def check_image_size(side: int) -> None:
    """Raise UsageError unless the images of a network may have this side."""
    require(1 <= side <= MAX_INPUT_SIDE, "image_size", side, f"from 1 to {MAX_INPUT_SIDE}")


def check_channel_count(channels: Any) -> None:
    """Raise UsageError unless images may have this number of channels."""
    valid = type(channels) is int and 1 <= channels <= MAX_CHANNELS
    require(valid, "channels", channels, f"a whole number from 1 to {MAX_CHANNELS}")


def images_per_pass(count: int, side: int) -> int:
    """Return how many of ``count`` square images a network is given at one time: at least 1, and 64 of 512 x 512."""
    return max(1, min(count, MAX_INPUT_SIDE**2 // side**2))


def most_images(side: int, channels: int = 3) -> int:
    """Return how many square images in uint8 may be held in memory."""
    return max(1, MAX_BATCH_BYTES // (channels * side**2))


def check_batch_size(count: int, side: int, channels: int = 3) -> None:
    """Raise UsageError if a batch of square pictures takes too much memory."""
    if count * channels * side**2 > MAX_BATCH_BYTES:
        raise UsageError(
            f"batch_size: a batch of {count:,} images of {side} x {side} pixels takes more than "
            f"{MAX_BATCH_BYTES // 2**30} GiB: choose at most {most_images(side, channels):,}"
        )


class PixelBudget:
    """Let threads, or processes that inherit this object, wait until a picture may be decoded.

    At most ``LIMIT`` pixels are decoded at one time; a larger picture is decoded alone.

    Args:
        between_processes: share the budget between processes; otherwise between the threads of one.

    Examples:
        >>> with PixelBudget(between_processes=False).lease() as take:
        ...     take(24_000_000)  # waits while other leases hold too many
    """

    def __init__(self, between_processes: bool) -> None:
        self._released = multiprocessing.Condition() if between_processes else threading.Condition()
        self._held = multiprocessing.RawValue(c_int64) if between_processes else c_int64()

    @contextmanager
    def lease(self) -> Iterator[Take]:
        """Yield a function that takes a number of pixels, once; they are returned at the end of this context."""
        taken: list[int] = []

        def take(pixels: int) -> None:
            if pixels <= NEGLIGIBLE:
                return
            with self._released:
                while self._held.value and self._held.value + pixels > LIMIT:
                    self._released.wait()
                self._held.value += pixels
                taken.append(pixels)

        try:
            yield take
        finally:
            if taken:
                with self._released:
                    self._held.value -= sum(taken)
                    self._released.notify_all()
