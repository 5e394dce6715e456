"""Curves of runs: loss and accuracy over epochs, a band over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing

History = Sequence[Mapping[str, float]]
# Okabe and Ito's colours, which colour-blind people can tell apart; then again, with another dash
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.")  # dots are for training
PANELS = {"loss": ("train/loss", "val/loss"), "accuracy (%)": ("val/acc",)}


def figure(runs: Mapping[str, Sequence[History]]) -> Any:
    """Draw validation accuracy and losses over epochs: a line for each name, with its seeds' range as a band.

    Raises UsageError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing of the process is changed
    except ModuleNotFoundError as error:
        raise UsageError("pictures need matplotlib: pip install 'hsakd_pl[plots]'") from error
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    axes = drawn.subplots(1, len(PANELS))
    for axis, (title, metrics) in zip(axes, PANELS.items(), strict=True):
        for number, (name, histories) in enumerate(runs.items()):
            for metric in metrics:
                dashes = ":" if metric.startswith("train") else DASHES[number // len(COLOURS) % len(DASHES)]
                label = " ".join(filter(None, [name, metric if len(metrics) > 1 else ""]))
                _line(axis, histories, metric, {"color": COLOURS[number % len(COLOURS)], "ls": dashes, "label": label})
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines and (len(runs) > 1 or len(metrics) > 1):
            axis.legend(fontsize="small")
    return drawn


def _line(axis: Any, histories: Sequence[History], metric: str, style: dict[str, str]) -> None:
    """Draw one metric: the mean of the runs at each epoch, and the range between them where there are several."""
    factor = 100 if metric.endswith("acc") else 1
    values: dict[float, list[float]] = {}
    for history in histories:
        for row in history:
            if metric in row and np.isfinite(row[metric]):
                values.setdefault(row["epoch"], []).append(factor * row[metric])
    if not values:
        return
    epochs = sorted(values)
    marker = {"marker": "o", "ms": 3} if len(epochs) < 20 else {}
    axis.plot(epochs, [np.mean(values[epoch]) for epoch in epochs], **style, **marker)
    if len(histories) > 1:
        lowest, highest = ([bound(values[epoch]) for epoch in epochs] for bound in (min, max))
        axis.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.2, lw=0)


def save_curves(runs: Mapping[str, Sequence[History]], path: Path) -> None:
    """Save the figure; the ending of ``path`` says in which format (png, svg, pdf)."""
    drawn, format = figure(runs), path.suffix[1:] or "png"
    if format not in drawn.canvas.get_supported_filetypes():
        raise UsageError(f"{path}: pictures are png, svg or pdf: choose such an ending")
    with replacing(path, "wb") as file:
        drawn.savefig(file, format=format, dpi=150)
