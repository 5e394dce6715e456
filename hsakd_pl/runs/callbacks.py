"""Lightning's callbacks: whether they fit the rest of a run, and which ones a resumed run continues exactly.

A resumed run continues all that are not listed here: what they change is in the checkpoints, or
:class:`hsakd_pl.runs.checkpoints.LastCheckpoint` sets it again.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError, counted, did_you_mean, require
from hsakd_pl.modules.trainers import callbacks_of, is_trial

# Callbacks whose state checkpoints do not contain, and what they lack
NEVER: dict[type[pl.Callback], str] = {
    BaseFinetuning: "which layers it has unfrozen",
    ModelPruning: "the masks of the pruned weights",
}
# Callbacks that prepare an epoch at its start, which a run that is resumed inside the epoch leaves out
BETWEEN_EPOCHS: tuple[type[pl.Callback], ...] = (StochasticWeightAveraging,)
# Callbacks that replace the weights by their average; Lightning 2.6 brought WeightAveraging
AVERAGING = (StochasticWeightAveraging, getattr(pl.callbacks, "WeightAveraging", StochasticWeightAveraging))

# By command, the options of the trainer that limit what it covers
LIMITS = {
    "fit": ("limit_train_batches", "max_epochs", "max_steps"),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}
# Schedules that multiply the rate of the step before, and do not know that of the start
RELATIVE_SCHEDULES = ("ExponentialLR", "MultiStepLR", "MultiplicativeLR", "ReduceLROnPlateau", "StepLR")


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


def check_counts(options: Any) -> None:
    """Raise UsageError for an option of the trainer that must be positive and is not.

    Lightning divides by some of them, and ignores a limit of gradients below 0.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        value = options.get(name)
        least = 0 if name == "log_every_n_steps" else 1
        require(value is None or value >= least, f"trainer.{name}", value, f"at least {least}")
    interval = options.get("val_check_interval")
    is_number = isinstance(interval, int | float)
    require(not is_number or interval > 0, "trainer.val_check_interval", interval, "above 0")
    clip = options.get("gradient_clip_val")
    require(clip is None or clip >= 0, "trainer.gradient_clip_val", clip, "at least 0")


def check_not_empty(trainer: pl.Trainer, command: str) -> None:
    """Raise UsageError for a limit of 0, with which a command would end well without having done anything."""
    for option in LIMITS[command]:
        if getattr(trainer, option) == 0:
            raise UsageError(f"trainer.{option} is 0, with which {command} does nothing: raise it, or leave it out")


def check_distinct(callbacks: Sequence[pl.Callback]) -> None:
    """Raise UsageError for two callbacks whose states checkpoints would keep under one name, or that both average."""
    names = set[str]()
    for callback in callbacks:
        kind = type(callback)
        has_state = kind.state_dict is not pl.Callback.state_dict
        if has_state and callback.state_key in names:
            raise UsageError(
                f"trainer.callbacks: there are two {kind.__name__}, and checkpoints would hold the state of one: leave "
                "one of them out"
            )
        names.add(callback.state_key)
    averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, AVERAGING)]
    if len(averaging) > 1:
        raise UsageError(
            f"trainer.callbacks: {' and '.join(averaging)} would each replace the weights by their average: leave all "
            "but one of them out"
        )


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
    if isinstance(callback, StochasticWeightAveraging):
        return _problem_of_averaging(callback, trainer, module)
    if isinstance(callback, LearningRateFinder):
        return _problem_of_search(module)
    logging = DeviceStatsMonitor | LearningRateMonitor
    if isinstance(callback, logging) and not trainer.loggers and not is_trial(trainer):
        return "needs a logger: set trainer.logger, for example to TensorBoardLogger"
    return None


def _problem_of_search(module: pl.LightningModule) -> str | None:
    """Return which options of a module would overrule the learning rate that is found, or be overruled by it.

    Lightning sets the rate of all parameter groups, while schedules have been built with the one before.
    """
    if getattr(module, "backbone_lr", None) is not None:
        return "sets one rate for all parameters: leave backbone_lr out"
    if getattr(module, "warmup_epochs", 0):
        return "starts the warm-up with the rate that it should end with: set warmup_epochs 0"
    make_schedule = getattr(module, "lr_scheduler", None)
    if make_schedule is None:
        return None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    return _problem_of_searched_schedule(make_schedule(optimizer))


def _problem_of_searched_schedule(schedule: Any) -> str | None:
    """Return why a schedule would not continue from the learning rate that is found."""
    name = type(schedule).__name__
    if name in RELATIVE_SCHEDULES:
        return None
    return f"leaves {name} at the learning rate before the search: choose {' or '.join(RELATIVE_SCHEDULES)}, or set lr"


def check_searched_schedules(trainer: pl.Trainer) -> None:
    """Raise UsageError for a schedule in use that would not continue from the learning rate that has been found.

    It is that of the option ``lr_scheduler`` of the command, or of a ``configure_optimizers`` of a user.
    """
    if not any(isinstance(callback, LearningRateFinder) for callback in callbacks_of(trainer)):
        return
    for config in trainer.lr_scheduler_configs:
        problem = _problem_of_searched_schedule(config.scheduler)
        if problem:
            raise UsageError(f"trainer.callbacks: LearningRateFinder {problem}")


def _problem_of_averaging(
    callback: StochasticWeightAveraging, trainer: pl.Trainer, module: pl.LightningModule
) -> str | None:
    """Return why the average would not be in the checkpoints of a fit.

    Lightning writes it into the module in an epoch that follows the last one, which measures batch norms; without it,
    after the last checkpoint. If averaging never begins, it writes the weights from before the fit.
    """
    epochs = trainer.max_epochs
    start = callback._swa_epoch_start
    if epochs in (None, -1) or trainer.max_steps != -1:
        return "needs a number of epochs: set trainer.max_epochs, and leave trainer.max_steps out"
    if not callback.pl_module_contains_batch_norm(module):
        return "does not average networks without batch norms before they are saved: use WeightAveraging instead"
    if isinstance(start, int) and epochs is not None and start > epochs:
        return f"begins in epoch {start}, but the fit has {counted(epochs, 'epoch')}: lower its swa_epoch_start"
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
    """Raise UsageError, before the first epoch, for a monitored validation metric that does not exist.

    Raise it as well for a schedule that ignores the learning rate that was searched.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_searched_schedules(trainer)

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
    if isinstance(error, UsageError):
        return
    is_configured = isinstance(error, RuntimeError | ValueError | MisconfigurationException)
    if not is_configured or not _is_lightnings(error):
        explain_part(error)
        return
    check_monitors(trainer)
    interval = trainer.val_check_interval
    is_per_epoch = trainer.check_val_every_n_epoch is not None
    if isinstance(interval, int) and is_per_epoch and interval > trainer.num_training_batches:
        batches = counted(int(trainer.num_training_batches), "batch")
        raise UsageError(
            f"trainer.val_check_interval is {interval}, but an epoch has {batches}: lower it, or set "
            "trainer.check_val_every_n_epoch null to count batches across epochs"
        ) from error
    if isinstance(error, MisconfigurationException):
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error
    explain_part(error)


def explain_part(error: Exception) -> None:
    """Raise UsageError in place of an error of one of Lightning's callbacks or loggers; return for others.

    Their options are the user's. An error is theirs if their own code, or that of PyTorch or Python, raised it.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return
    libraries = {*sys.stdlib_module_names, "torch", "fsspec", "lightning_fabric", "pytorch_lightning"}
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        if _package(frame) not in libraries:
            return
        part = frame.f_locals.get("self")
        if isinstance(part, Checkpoint):  # which saves what others cannot
            return
        if isinstance(part, pl.Callback | Logger):
            option = "trainer.callbacks" if isinstance(part, pl.Callback) else "trainer.logger"
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise UsageError(
                f"{option}: {type(part).__name__} failed: {reason:.300}; check its options (--debug shows where)"
            ) from error


def _package(frame: Any) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_lightnings(error: Exception) -> bool:
    """Return True if code of Lightning raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return _package(frame) in ("pytorch_lightning", "lightning_fabric")
