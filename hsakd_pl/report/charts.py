"""Charts as SVG: the position of numbers on a drawing, and marks that can be distinguished without colours."""

from collections.abc import Iterable
from math import ceil, floor, log10
from typing import NamedTuple

from hsakd_pl.records.figures import PALETTE

DASHES = ("none", "7 3", "2 2.5", "9 3 2 3", "4 2")  # five of each: with seven colours, 35 different lines
SHAPES = (
    "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",  # circle
    "m-2.7,-2.7h5.4v5.4h-5.4z",  # square
    "m0,-3.6l3.5,6h-7z",  # triangle
    "m0,-4l3.4,4l-3.4,4l-3.4,-4z",  # diamond
    "m-1.1,-3.6h2.2v2.5h2.5v2.2h-2.5v2.5h-2.2v-2.5h-2.5v-2.2h2.5z",  # plus
)
MOST_TICKS = 6  # steps of an axis, about
SMALLEST_RANGE = 1e-8  # of an axis, also in proportion to its numbers: smaller ones are rounding


class Style(NamedTuple):
    """The look of a line and its marks."""

    colour: str
    dash: str
    shape: str


# The colours are variables of page.css, which are lighter on a dark background
COLOURS = tuple(f"var(--series{number})" for number in range(len(PALETTE)))
STYLES = tuple(map(Style, COLOURS * 5, DASHES * 7, SHAPES * 7))


def round_numbers(low: float, high: float, least: float = 0) -> list[float]:
    """Return at most 8 numbers that span low..high, in steps of 1, 2 or 5 times a power of ten, and at least ``least``.

    Examples:
        >>> round_numbers(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough_step = max(high - low or abs(high) or 1, SMALLEST_RANGE, SMALLEST_RANGE * abs(high)) / MOST_TICKS
    power = 10 ** floor(log10(rough_step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough_step * 0.999)
    step = max(least, step)
    first = floor(low / step)
    last = max(ceil(high / step), first + 1)
    return [round(step * number, 10) for number in range(first, last + 1)]


class Chart:
    """Axes on a drawing of ``width`` x ``height`` units, with room for their labels.

    Args:
        x: numbers at which the horizontal axis is labelled, in order; the first and the last are its ends.
        y: the same for the vertical axis.
    """

    width = 420
    height = 270
    left = 56
    right = 410
    top = 12
    bottom = 230

    def __init__(self, x: Iterable[float], y: Iterable[float]) -> None:
        self.x_ticks = list(x)
        self.y_ticks = list(y)

    def x(self, value: float) -> float:
        """Return the horizontal position of a number."""
        low = self.x_ticks[0]
        high = self.x_ticks[-1]
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a number, from the top."""
        low = self.y_ticks[0]
        high = self.y_ticks[-1]
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def line(self, points: Iterable[tuple[float, float]]) -> str:
        """Return the ``points`` of an SVG polyline or polygon."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def marks(self, points: Iterable[tuple[float, float]], shape: str) -> str:
        """Return the ``d`` of an SVG path that draws the shape at every point."""
        return "".join(f"M{self.x(x)},{self.y(y)}{shape}" for x, y in points)
