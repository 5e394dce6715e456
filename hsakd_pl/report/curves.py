"""Curves of runs: loss and accuracy over epochs, a band over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.report.charts import COLOURS

History = Sequence[Mapping[str, float]]
DASHES = ("-", "--", "-.")  # dots are for training
PANELS = {"loss (dotted: in training)": ("train/loss", "val/loss"), "accuracy (%)": ("val/acc",)}


def blank(width: float, height: float) -> Any:
    """Make an empty figure of so many inches; raises UsageError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing of the process is changed
    except ModuleNotFoundError as error:
        raise UsageError("pictures need matplotlib: pip install 'hsakd_pl[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def figure(runs: Mapping[str, Sequence[History]]) -> Any:
    """Draw validation accuracy and losses over epochs: a line for each name, with its seeds' range as a band."""
    drawn = blank(9, 3.6 + 0.2 * len(runs))
    axes = drawn.subplots(1, len(PANELS))
    for axis, (title, metrics) in zip(axes, PANELS.items(), strict=True):
        for number, (name, histories) in enumerate(runs.items()):
            for metric in metrics:
                dashes = ":" if metric.startswith("train") else DASHES[number // len(COLOURS) % len(DASHES)]
                label = name if metric == metrics[-1] else ""
                _line(axis, histories, metric, {"color": COLOURS[number % len(COLOURS)], "ls": dashes, "label": label})
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    if any(runs):
        handles, labels = axes[-1].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", fontsize="small")
    return drawn


def _line(axis: Any, histories: Sequence[History], metric: str, style: dict[str, str]) -> None:
    """Draw one metric: the mean of the runs at each epoch, and the range between them where there are several."""
    values = over_seeds(histories, metric)
    if not values:
        return
    epochs = [epoch for epoch, _ in values]
    marker = {"marker": "o", "ms": 3} if len(epochs) < 20 else {}
    axis.plot(epochs, [np.mean(seeds) for _, seeds in values], **style, **marker)
    if len(histories) > 1:
        lowest, highest = ([bound(seeds) for _, seeds in values] for bound in (min, max))
        axis.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.2, lw=0)


def over_seeds(histories: Sequence[History], metric: str) -> list[tuple[float, list[float]]]:
    """Give for each epoch what the runs measured that have it, accuracies in percent; infinite numbers are left out."""
    factor, found = 100 if metric.endswith("acc") else 1, dict[float, list[float]]()
    for row in (row for history in histories for row in history):
        if np.isfinite(row.get(metric, np.nan)):
            found.setdefault(row["epoch"], []).append(factor * row[metric])
    return sorted(found.items())


def save_curves(runs: Mapping[str, Sequence[History]], path: Path) -> None:
    """Draw :func:`figure` into a file."""
    save_figure(figure(runs), path)


def save_figure(drawn: Any, path: Path) -> None:
    """Save a figure; the ending of ``path`` says in which format (png, svg, pdf)."""
    format = path.suffix[1:] or "png"
    if format not in drawn.canvas.get_supported_filetypes():
        raise UsageError(f"{path}: pictures are png, svg or pdf: choose such an ending")
    with replacing(path, "wb") as file:
        drawn.savefig(file, format=format, dpi=150)
