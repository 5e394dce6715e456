"""Which of Lightning's callbacks a resumed run continues exactly, and which not.

It continues all others: what they change is in the checkpoints, or
:class:`hsakd_pl.runs.checkpoints.LastCheckpoint` sets it again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError

# Callbacks whose state checkpoints do not contain, and what they lack
NEVER: dict[type[pl.Callback], str] = {
    BaseFinetuning: "which layers it has unfrozen",
    ModelPruning: "the masks of the pruned weights",
}
# Callbacks that prepare an epoch at its start, which a run that is resumed inside of the epoch leaves out
BETWEEN_EPOCHS: tuple[type[pl.Callback], ...] = (StochasticWeightAveraging,)


def resumes_inside_epochs(callbacks: Iterable[pl.Callback]) -> bool:
    """Return True if a run with these callbacks can be resumed inside of an epoch."""
    return not any(isinstance(callback, (*BETWEEN_EPOCHS, *NEVER)) for callback in callbacks)


def announce(callbacks: Iterable[pl.Callback]) -> None:
    """Log which callbacks limit where the run can be resumed."""
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, tuple(NEVER)):
            rank_zero_info(f"A run with {name} cannot be resumed: checkpoints do not contain {_lacking(callback)}")
        elif isinstance(callback, BETWEEN_EPOCHS):
            rank_zero_info(f"A run with {name} is saved and resumed only between epochs")


def check_resumable(callbacks: Iterable[pl.Callback], checkpoint: Mapping[str, Any]) -> None:
    """Raise UsageError for a callback that would not continue exactly from a checkpoint."""
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, tuple(NEVER)):
            raise UsageError(
                f"trainer.callbacks: a run with {name} cannot be resumed, checkpoints do not contain "
                f"{_lacking(callback)}: start it again in another folder, or leave the callback out"
            )
        if isinstance(callback, BETWEEN_EPOCHS) and _is_inside_epoch(checkpoint):
            raise UsageError(
                f"trainer.callbacks: a run with {name} can only be resumed between epochs, and the checkpoint is of "
                f"the middle of epoch {checkpoint['epoch'] + 1}: name another one, or leave the callback out"
            )


def _lacking(callback: pl.Callback) -> str:
    return next(lacking for kind, lacking in NEVER.items() if isinstance(callback, kind))


def _is_inside_epoch(checkpoint: Mapping[str, Any]) -> bool:
    counts = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return counts["ready"] != counts["processed"]
