"""Draw the figure of the method: python docs/assets/method.py writes method-light.svg and method-dark.svg here."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.datasets import load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent
# Ink, muted ink, background, and fill and edge of the teacher, the student and the losses
INKS = {
    "light": ("#1f2328", "#59636e", "#ffffff", ("#dcebff", "#2563b0"), ("#ffe8d1", "#b45309"), ("#e6f4e7", "#1f7a37")),
    "dark": ("#e6edf3", "#9198a1", "#0d1117", ("#12294a", "#79b0f5"), ("#3f2410", "#f0a35e"), ("#10321c", "#6fcf86")),
}
STAGES = (3.45, 5.35, 7.25)  # x of the three stages
LAST = 9.35  # x of the class heads
# y of the three rows
TEACHER = 5.35
STUDENT = 0.85
MIDDLE = 3.1
TEACHER_NOTE = "trained first: class head on y, branches on joint labels; then frozen"
STUDENT_NOTE = "trained on y and all outputs of the teacher; then drops its branches"
BRANCH = 1.02  # distance of the branches from their row
JOINT = 1.58  # distance of the joint logits from their row


class Drawing:
    """Draw the figure in one of the two palettes."""

    def __init__(self, palette: str) -> None:
        self.ink, self.muted, self.background, self.teacher, self.student, self.loss = INKS[palette]
        self.figure = plt.figure(figsize=(10.6, 6.2), facecolor="none")
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 10.6), ylim=(0, 6.2))
        self.axes.axis("off")

    def text(self, x: float, y: float, words: str, size: float = 10.5, **options: Any) -> None:
        """Write text centred at a point."""
        self.axes.text(x, y, words, **{"size": size, "color": self.ink, "ha": "center", "va": "center", **options})

    def box(
        self,
        x: float,
        y: float,
        words: str,
        colours: tuple[str, str],
        width: float = 1.3,
        high: float = 0.5,
        **options: Any,
    ) -> None:
        """Draw a rounded box with text, centred at a point."""
        shape = FancyBboxPatch(
            (x - width / 2, y - high / 2),
            width,
            high,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=colours[0],
            edgecolor=colours[1],
            linewidth=1.3,
        )
        self.axes.add_patch(shape)
        self.text(x, y, words, **options)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-|>") -> None:
        """Draw an arrow between two points."""
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle=style, mutation_scale=11, color=colour, linewidth=1.3, shrinkA=0, shrinkB=0
            )
        )

    def pictures(self) -> None:
        """Draw a digit in four rotations and its joint labels."""
        digit = load_digits().images[4]
        self.text(1.1, 5.62, "an image of class y = 4,\nrotated M = 4 ways", size=10.5)
        for m in range(4):
            y = 4.72 - m * 1.08
            inner = self.axes.inset_axes((0.3, y - 0.4, 0.8, 0.8), transform=self.axes.transData)
            inner.imshow(np.rot90(digit, m), cmap="gray_r", interpolation="bilinear")
            inner.set(xticks=[], yticks=[])
            for spine in inner.spines.values():
                spine.set_color(self.muted)
            self.text(1.24, y + 0.12, f"{90 * m}°", ha="left", color=self.muted, size=9.5)
            self.text(1.24, y - 0.14, f"joint label {4 * 4 + m}", ha="left", size=9.5)
        self.text(1.1, 0.55, "joint label = 4 · y + m", size=10.5, color=self.muted)

    def network(self, row: float, towards: int, name: str, about: str, colours: tuple[str, str]) -> None:
        """Draw a backbone of three stages along a row, with its branches pointing to the middle."""
        edge = colours[1]
        line = {"ha": "left", "va": "baseline"}
        self.text(STAGES[0] - 0.65, row - towards * 0.5 - 0.06, name, size=12, weight="bold", color=edge, **line)
        self.text(STAGES[0] + 0.28, row - towards * 0.5 - 0.06, about, size=9.5, color=self.muted, **line)
        self.arrow((2.42, row), (STAGES[0] - 0.65, row), edge)
        for number, x in enumerate(STAGES, 1):
            self.box(x, row, f"stage {number}", colours)
            self.arrow((x + 0.65, row), (STAGES[number] - 0.65 if number < 3 else LAST - 0.7, row), edge)
            self.arrow((x, row + towards * 0.25), (x, row + towards * (BRANCH - 0.2)), edge)
            self.box(x, row + towards * BRANCH, f"branch {number}", colours, high=0.4, size=9.5)
            self.box(x, row + towards * JOINT, "joint logits, 4N", colours, high=0.4, size=9.5)
            self.arrow((x, row + towards * (BRANCH + 0.2)), (x, row + towards * (JOINT - 0.2)), edge)
        self.box(LAST, row, "class logits, N", colours, width=1.4)

    def losses(self) -> None:
        """Draw the loss terms."""
        edge = self.loss[1]
        for x in (*STAGES, LAST):
            tip = JOINT + 0.2 if x < LAST else 0.25
            self.arrow((x, TEACHER - tip), (x, STUDENT + tip), edge)
            self.box(x, MIDDLE, "KD", self.loss, width=0.62, high=0.34, size=10, weight="bold")
        note = {"size": 9, "color": self.muted}
        self.text(LAST + 0.12, MIDDLE + 0.82, "KD on all\nrotations", ha="left", **note)
        self.text(LAST + 0.12, MIDDLE - 0.82, "T² · KL, T = 3", ha="left", **note)
        for row, side in ((TEACHER, 1), (STUDENT, -1)):
            self.text(LAST, row + side * 0.5 - 0.06, "cross-entropy with y", size=9.5, color=edge, va="baseline")
        self.text(STAGES[0] + 0.12, TEACHER - 0.52, "features", ha="left", **note)

    def save(self, path: Path) -> None:
        """Write the drawing as SVG, reproducibly."""
        matplotlib.rcParams["svg.hashsalt"] = "hsakd_pl"
        self.figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(self.figure)


def main(folder: Path = FOLDER) -> None:
    """Write the figure for light and dark pages."""
    for palette in INKS:
        drawing = Drawing(palette)
        drawing.pictures()
        drawing.network(TEACHER, -1, "Teacher", TEACHER_NOTE, drawing.teacher)
        drawing.network(STUDENT, 1, "Student", STUDENT_NOTE, drawing.student)
        drawing.losses()
        drawing.save(folder / f"method-{palette}.svg")


if __name__ == "__main__":
    main()
