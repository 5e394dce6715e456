"""Test the short recordings in ``data`` against the whole ones, and what summaries detect."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from . import derive
from .recordings import DATA, GOLDEN, Recorded, deviation, summary_of


def leaves(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of everything in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, f"{place}/{key}")
        else:
            yield f"{place}/{key}", value


def is_alike(stored: Any, new: Any) -> bool:
    """Compare values; NumPy's sums depend on the processor's vectors."""
    return math.isclose(stored, new, rel_tol=1e-12) if isinstance(stored, float) else stored == new


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"needs {GOLDEN}, the whole recordings, which are not published")
def test_data_equals_what_the_recordings_give() -> None:
    contents = derive.derived()
    assert {path.name for path in DATA.iterdir()} == set(contents)
    for name, content in contents.items():
        stored = dict(leaves(json.loads((DATA / name).read_text())))
        new = dict(leaves(json.loads(derive.text_of(content))))
        assert stored.keys() == new.keys(), name
        different = [place for place, value in stored.items() if not is_alike(value, new[place])]
        assert not different, name


def test_data_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 500_000


@pytest.mark.parametrize("change", [1e-6, -1e-6])
def test_summary_notices_a_single_changed_element(change: float) -> None:
    array = np.random.default_rng(0).standard_normal((8, 5, 8, 8))
    recorded = Recorded(summary_of(array))
    assert deviation(torch.from_numpy(array), recorded) == 0
    array[3, 1, 4, 1] += change
    assert deviation(torch.from_numpy(array), recorded) > 1e-9


def test_summary_notices_swapped_elements() -> None:
    array = torch.arange(12.0).reshape(3, 4)
    assert deviation(array.flip(1), Recorded(summary_of(array))) > 1e-2
