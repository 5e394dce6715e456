"""Curves of runs: loss and accuracy over epochs, a band over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsakd_pl.records.figures import PALETTE, blank_figure, save_figure

Epochs = Sequence[Mapping[str, float]]
LINE_STYLES = ("-", "--", "-.")  # dots are for training
PANELS = {"loss (dotted: in training)": ("train/loss", "val/loss"), "accuracy (%)": ("val/acc",)}
FEW_EPOCHS = 20  # up to which each has a mark
LARGEST_DRAWN = 1e30  # of a run that diverges


def save_curves(runs: Mapping[str, Sequence[Epochs]], path: Path, title: str | None = None) -> None:
    """Draw :func:`draw_curves` into a file, with a title in its metadata."""
    save_figure(draw_curves(runs), path, title)


def draw_curves(runs: Mapping[str, Sequence[Epochs]]) -> Any:
    """Draw validation accuracy and losses over epochs: a line for each name, with the range of its runs as a band."""
    figure = blank_figure(9, 3.6 + 0.2 * len(runs))
    axes = figure.subplots(1, len(PANELS))
    for axis, (title, metrics) in zip(axes, PANELS.items(), strict=True):
        for number, (name, histories) in enumerate(runs.items()):
            round_of_colours, colour = divmod(number, len(PALETTE))
            for metric in metrics:
                style = {
                    "color": PALETTE[colour],
                    "ls": ":" if metric.startswith("train") else LINE_STYLES[round_of_colours % len(LINE_STYLES)],
                    "label": name if metric == metrics[-1] else "",
                }
                _draw_metric(axis, histories, metric, style)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    if any(runs):
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", fontsize="small")
    return figure


def _draw_metric(axis: Any, histories: Sequence[Epochs], metric: str, style: dict[str, str]) -> None:
    """Draw the mean of the runs at each epoch, and their range where there are several."""
    points = over_seeds(histories, metric)
    if not points:
        return
    epochs = [epoch for epoch, _ in points]
    means = [np.mean(values) for _, values in points]
    marker = {"marker": "o", "ms": 3} if len(epochs) < FEW_EPOCHS else {}
    axis.plot(epochs, means, **style, **marker)
    if len(histories) > 1:
        lowest = [min(values) for _, values in points]
        highest = [max(values) for _, values in points]
        axis.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.2, lw=0)


def over_seeds(histories: Sequence[Epochs], metric: str) -> list[tuple[float, list[float]]]:
    """Return each epoch with the values of the runs, accuracies in percent, without those that no axis can show."""
    factor = 100 if metric.endswith("acc") else 1
    values: dict[float, list[float]] = {}
    for history in histories:
        for row in history:
            if abs(row.get(metric, np.nan)) < LARGEST_DRAWN:
                values.setdefault(row["epoch"], []).append(factor * row[metric])
    return sorted(values.items())
