"""Say when a moving average of the weights is too slow for the length of a run."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.modules.trainers import callbacks_of

# Share of the weights after the first step in the average at the end, above which the average is not worth validating
LARGEST_SHARE = 0.05


def warn_of_slow_averages(trainer: pl.Trainer) -> None:
    """Log a warning for an ``EMAWeightAveraging`` whose average still consists of the first weights at the end."""
    kind = getattr(callbacks, "EMAWeightAveraging", None)  # Lightning 2.6 brought it
    averages = [callback for callback in callbacks_of(trainer) if kind and isinstance(callback, kind)]
    for average in averages:
        updates = _updates(average, trainer.estimated_stepping_batches)
        decay = _decay(average)
        if 0 < decay < 1 and updates > 0 and decay**updates > LARGEST_SHARE:
            rank_zero_info(
                f"EMAWeightAveraging: decay {decay:g} is too slow for {updates:,.0f} updates: at the end, the average "
                f"that validates and is saved holds {decay**updates:.0%} of the first weights; "
                f"choose a decay below {LARGEST_SHARE ** (1 / updates):.3f}"
            )


def _updates(average: Any, steps: float) -> float:
    """Return the number of steps after which the average is updated."""
    if average.update_starting_at_epoch is not None and average.update_starting_at_step is None:
        return 0  # also updated after epochs: no statement
    return (steps - (average.update_starting_at_step or 0)) / max(1, average.update_every_n_steps)


def _decay(average: Any) -> float:
    """Return the decay of an average, or 0 if it has none. Lightning keeps it in a closure, which is called here."""
    average_of = getattr(average, "_kwargs", {}).get("avg_fn")
    if average_of is None:
        return 0.0
    return float(average_of(torch.ones(()), torch.zeros(()), torch.ones((), dtype=torch.int64)))
