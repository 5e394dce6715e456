"""The numbers recorded from the published code: their short form in ``data``, and every element where it is there.

The recordings hold megabytes of arrays. ``data`` keeps of each array its shape, its largest magnitude, its L2 norm and
two checksums, so that the suite runs in any clone; the inputs follow by rule and are not stored. `derive` writes
``data`` from the recordings. Where the folder ``golden`` exists as well, each comparison covers all elements.
"""

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).with_name("data")
GOLDEN = Path(os.environ.get("HSAKD_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "golden"


@cache
def checksum_weights(size: int) -> np.ndarray:
    """Return two vectors (2, size), whose dot products with an array are its checksums."""
    return np.random.default_rng(size).standard_normal((2, size))


def summary_of(array: Any) -> dict[str, Any]:
    """Return what ``data`` keeps of an array."""
    values = np.asarray(array, dtype=np.float64)
    flat = values.ravel()
    return {
        "shape": list(values.shape),
        "largest": float(np.abs(flat).max()),
        "l2": float(np.sqrt(flat @ flat)),
        "checksums": (checksum_weights(flat.size) @ flat).tolist(),
    }


class Recorded:
    """A recorded array: its summary, and its elements where the recordings exist.

    Args:
        summary: the entry of ``data``.
        elements: the array itself, or None.
    """

    def __init__(self, summary: dict[str, Any], elements: np.ndarray | None = None) -> None:
        self.shape = tuple(summary["shape"])
        self.summary = summary
        self.elements = elements

    def deviation(self, computed: Tensor, scale: float | None) -> float:
        """Return the largest deviation of the summary's numbers or of the elements, relative to ``scale``.

        The bound of a checksum grows with the square root of the number of elements, as rounding does.
        """
        scale = self.summary["largest"] if scale is None else scale
        summary = summary_of(computed)
        differences = [abs(summary["l2"] - self.summary["l2"])]
        differences += np.abs(np.subtract(summary["checksums"], self.summary["checksums"])).tolist()
        largest = max(differences) / math.sqrt(computed.numel())
        if self.elements is not None:
            largest = max(largest, float(np.abs(computed.numpy() - self.elements).max()))
        return largest / scale if largest else 0.0


def deviation(computed: Any, recorded: Any, scale: float | None = None) -> float:
    """Return the largest deviation, relative to ``scale`` or else to the largest recorded magnitude.

    The shapes must be equal. ``recorded`` is a number, a tensor or a `Recorded`.
    """
    computed = torch.as_tensor(computed, dtype=torch.float64).detach()
    if not isinstance(recorded, Recorded):
        elements = torch.as_tensor(recorded, dtype=torch.float64).detach().numpy()
        recorded = Recorded(summary_of(elements), elements)
    assert tuple(computed.shape) == recorded.shape, f"shape {tuple(computed.shape)}, recorded {recorded.shape}"
    return recorded.deviation(computed, scale)


def read(name: str) -> dict[str, Any]:
    """Return the content of a file of ``data``."""
    return json.loads((DATA / name).read_text())


@cache
def _arrays(name: str) -> Any:
    path = GOLDEN / name
    return np.load(path) if path.exists() else None


def recorded_arrays(summaries: dict[str, Any], name: str, prefix: str = "") -> dict[str, Recorded]:
    """Return recorded arrays by their names.

    Args:
        summaries: the entries of ``data``.
        name: the file of the recordings that holds the elements.
        prefix: start of the names in that file, left out of ``summaries``.
    """
    arrays = _arrays(name)
    return {
        key: Recorded(summary, None if arrays is None else arrays[prefix + key]) for key, summary in summaries.items()
    }
