"""Charts as SVG: where numbers lie on a drawing, and marks that can be told apart without colours."""

from collections.abc import Iterable
from math import ceil, floor, log10
from typing import NamedTuple

from hsakd_pl.records.figures import PALETTE

DASHES = ("none", "7 3", "2 2.5", "9 3 2 3", "4 2")  # five of each: with seven colours, 35 lines that differ
SHAPES = (
    "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",  # circle
    "m-2.7,-2.7h5.4v5.4h-5.4z",  # square
    "m0,-3.6l3.5,6h-7z",  # triangle
    "m0,-4l3.4,4l-3.4,4l-3.4,-4z",  # diamond
    "m-1.1,-3.6h2.2v2.5h2.5v2.2h-2.5v2.5h-2.2v-2.5h-2.5v-2.2h2.5z",  # plus
)


class Style(NamedTuple):
    """How a line and its marks look."""

    colour: str
    dash: str
    shape: str


STYLES = tuple(map(Style, PALETTE * 5, DASHES * 7, SHAPES * 7))


def round_numbers(low: float, high: float, least: float = 0) -> list[float]:
    """Choose at most 8 numbers in steps of 1, 2 or 5 times a power of ten, and of ``least``, that span low..high."""
    rough = (high - low or abs(high) or 1) / 6
    power = 10 ** floor(log10(rough))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999))
    first = floor(low / step)
    return [round(step * number, 10) for number in range(first, max(ceil(high / step), first + 1) + 1)]


class Chart:
    """Lays numbers out on a drawing of ``width`` x ``height`` units, with room for the axes' labels."""

    width, height = 420, 270
    left, right, top, bottom = 44, 410, 12, 230

    def __init__(self, x: Iterable[float], y: Iterable[float]) -> None:
        """Take the numbers at which the axes are labelled, in order; the first and the last are their ends."""
        self.x_ticks, self.y_ticks = list(x), list(y)

    def x(self, value: float) -> float:
        """Give where a number lies from the left."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Give where a number lies from the top."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def line(self, points: Iterable[tuple[float, float]]) -> str:
        """Give the ``points`` of an SVG polyline or polygon."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def marks(self, points: Iterable[tuple[float, float]], shape: str) -> str:
        """Give the ``d`` of an SVG path that draws the shape at every point."""
        return "".join(f"M{self.x(x)},{self.y(y)}{shape}" for x, y in points)
