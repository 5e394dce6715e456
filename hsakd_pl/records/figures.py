"""Figures of matplotlib, which is an optional package."""

from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is hardly visible on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def blank_figure(width: float, height: float) -> Any:
    """Return an empty figure, width and height in inches; raises UsageError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would change state of the process
    except ModuleNotFoundError as error:
        raise UsageError("pictures need matplotlib: pip install 'hsakd_pl[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path, title: str | None = None) -> None:
    """Save a figure in the format of the ending of ``path``: png, svg or pdf; raises UsageError for others.

    Args:
        figure: figure to save.
        path: file to write.
        title: text in the metadata of the file.
    """
    ending = path.suffix[1:].lower() or "png"
    if ending not in ("png", "svg", "pdf"):
        raise UsageError(f"{path}: pictures are png, svg or pdf: choose such an ending")
    with replacing(path, "wb") as file:
        figure.savefig(file, format=ending, dpi=150, metadata={} if title is None else {"Title": title})
