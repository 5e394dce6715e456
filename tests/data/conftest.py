"""Provide a trainer that only trains."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., pl.Trainer]:
    """Return a function that makes a silent CPU trainer."""

    def _make_trainer(**arguments: Any) -> pl.Trainer:
        silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(accelerator="cpu", devices=1, **{"enable_checkpointing": False, **silent, **arguments})

    return _make_trainer
