"""Test the short recordings in ``data`` against the whole ones, and what summaries detect."""

import json

import numpy as np
import pytest
import torch

from . import derive
from .recordings import DATA, GOLDEN, Recorded, deviation, summary_of


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"needs {GOLDEN}, the whole recordings, which are not published")
def test_data_equals_what_the_recordings_give() -> None:
    contents = derive.derived()
    assert {path.name for path in DATA.iterdir()} == set(contents)
    for name, content in contents.items():
        assert json.loads((DATA / name).read_text()) == json.loads(derive.text_of(content)), name


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
