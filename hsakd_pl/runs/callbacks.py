"""Lightning's callbacks: whether they fit the rest of a run, and which ones a resumed run continues exactly.

A resumed run continues all that are not listed here: what they change is in the checkpoints, or
:class:`hsakd_pl.runs.checkpoints.LastCheckpoint` sets it again.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch.nn as nn
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.modules.trainers import callbacks_of, is_trial

# Callbacks whose state checkpoints do not contain, and what they lack
NEVER: dict[type[pl.Callback], str] = {
    BaseFinetuning: "which layers it has unfrozen",
    ModelPruning: "the masks of the pruned weights",
}
# Callbacks that prepare an epoch at its start, which a run that is resumed inside the epoch leaves out
BETWEEN_EPOCHS: tuple[type[pl.Callback], ...] = (StochasticWeightAveraging,)


def resumes_inside_epochs(callbacks: Iterable[pl.Callback]) -> bool:
    """Return True if a run with these callbacks can be resumed inside an epoch."""
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


def check_callbacks(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Raise UsageError for a callback that does not fit the trainer's options or the module."""
    for callback in callbacks_of(trainer):
        problem = _problem(callback, trainer, module)
        if problem:
            raise UsageError(f"trainer.callbacks: {type(callback).__name__} {problem}")


def _problem(callback: pl.Callback, trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    if isinstance(callback, BackboneFinetuning) and not isinstance(getattr(module, "backbone", None), nn.Module):
        return (
            f"needs a module with a part named backbone, which {type(module).__name__} has not: set "
            "model.init_args.backbone_lr, a learning rate for all parameters but those of the head"
        )
    if isinstance(callback, GradientAccumulationScheduler) and trainer.accumulate_grad_batches != 1:
        return "replaces trainer.accumulate_grad_batches: leave one of the two out"
    if isinstance(callback, ModelPruning) and getattr(module, "fast", False):
        return "needs weights in PyTorch's own order: set model.init_args.fast false"
    logging = DeviceStatsMonitor | LearningRateMonitor
    if isinstance(callback, logging) and not trainer.loggers and not is_trial(trainer):
        return "needs a logger: set trainer.logger, for example to TensorBoardLogger"
    return None


def monitored(trainer: pl.Trainer) -> dict[str, str]:
    """Return the metrics that callbacks and schedules must find, with who monitors them."""
    monitors = {}
    for callback in callbacks_of(trainer):
        is_strict = isinstance(callback, EarlyStopping) and callback.strict
        is_strict = is_strict or (isinstance(callback, ModelCheckpoint) and callback.monitor != "val/acc")
        if is_strict and getattr(callback, "monitor", None) is not None:
            monitors[str(callback.monitor)] = type(callback).__name__  # type: ignore[attr-defined]
    for schedule in trainer.lr_scheduler_configs:
        if schedule.reduce_on_plateau and schedule.strict and schedule.monitor:
            monitors[schedule.monitor] = type(schedule.scheduler).__name__
    return monitors


class Monitors(pl.Callback):
    """Raise UsageError for a monitored validation metric that does not exist, before the first epoch."""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # those of the branches are measured in every n-th validation only
        check_monitors(trainer, lambda name: name.startswith("val") and "branch" not in name)


def check_monitors(trainer: pl.Trainer, promised: Callable[[str], bool] = lambda name: True) -> None:
    """Raise UsageError for a monitored metric that is not logged.

    Args:
        trainer: trainer of the fit, whose ``callback_metrics`` are those that exist.
        promised: tells by the name of a metric whether it must be logged by now.
    """
    metrics = sorted(trainer.callback_metrics)
    for name, monitor in monitored(trainer).items():
        if name not in metrics and promised(name):
            raise UsageError(
                f"{monitor} monitors {name}, which is not logged: {did_you_mean(name, metrics)}the metrics are "
                f"{', '.join(metrics)}"
            )


def explain_stop(trainer: pl.Trainer, error: Exception) -> None:
    """Raise UsageError in place of an error of Lightning's own about how a run is configured; return for others."""
    if isinstance(error, UsageError) or not _is_lightnings(error):
        return
    check_monitors(trainer)
    interval = trainer.val_check_interval
    is_per_epoch = trainer.check_val_every_n_epoch is not None
    if isinstance(interval, int) and is_per_epoch and interval > trainer.num_training_batches:
        raise UsageError(
            f"trainer.val_check_interval is {interval}, but an epoch has {trainer.num_training_batches} batches: "
            "lower it, or set trainer.check_val_every_n_epoch null to count batches across epochs"
        ) from error
    if isinstance(error, MisconfigurationException):
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error


def _is_lightnings(error: Exception) -> bool:
    """Return True if code of Lightning raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("pytorch_lightning", "lightning_fabric")
