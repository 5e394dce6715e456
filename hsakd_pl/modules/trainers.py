"""Read the attributes that Lightning's trainer sets without declaring them."""

from typing import Any

import pytorch_lightning as pl


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the trainer's list of callbacks itself, which can be changed."""
    undeclared: Any = trainer
    callbacks: list[pl.Callback] = undeclared.callbacks
    return callbacks


def is_trial(trainer: pl.Trainer) -> bool:
    """Return True if the trainer runs a few batches to try the code, with ``fast_dev_run``."""
    undeclared: Any = trainer
    return bool(undeclared.fast_dev_run)
