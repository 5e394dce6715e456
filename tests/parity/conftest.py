"""Provide the recorded cases of the newer methods in both precisions."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from .newer import RECORDINGS, Case


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> torch.dtype:
    """Return the type in which a loss is computed."""
    return request.param


@pytest.fixture(params=RECORDINGS)
def case(request: pytest.FixtureRequest, precision: torch.dtype) -> Callable[[str], Case]:
    """Return a function that reads a case of one recording by its name."""
    return partial(Case, request.param, dtype=precision)
