"""The length of a fit, in epochs and optimizer steps, and how much of it is done."""

import math
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.modules.trainers import callbacks_of


def accumulated_batches(trainer: pl.Trainer, epoch: int) -> int:
    """Return the number of batches per optimizer step in an epoch, counted from 0."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def steps_of_epochs(trainer: pl.Trainer, epochs: Iterable[int]) -> int | None:
    """Return the number of optimizer steps of epochs, counted from 0; None if the loader has no length."""
    trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return None
    return sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in epochs)


def planned_steps(
    trainer: pl.Trainer, max_epochs: int, max_steps: int, ended_epochs: int, ended_steps: int
) -> int | None:
    """Return the optimizer steps of a whole fit; None if its length is unlimited, or not known in advance.

    Args:
        trainer: trainer of the fit.
        max_epochs: number of epochs of the fit, -1 for no limit.
        max_steps: number of optimizer steps of the fit, -1 for no limit.
        ended_epochs: number of epochs that are complete.
        ended_steps: number of optimizer steps in them.
    """
    if not trainer.lightning_module.automatic_optimization:  # the module itself decides when to step
        return None
    limits = [] if max_steps == -1 else [max_steps]
    if max_epochs != -1:
        left = steps_of_epochs(trainer, range(ended_epochs, max_epochs))
        if left is None:
            return None
        limits.append(ended_steps + left)
    return min(limits, default=None)


def check_minimum(trainer: pl.Trainer, planned: int | None) -> None:
    """Raise UsageError if ``min_steps`` or ``min_epochs`` is beyond the end of a fit that begins.

    Args:
        trainer: trainer of the fit.
        planned: return value of :func:`planned_steps`.
    """
    if planned is None or trainer.ckpt_path is not None:
        return
    steps_of_least_epochs = steps_of_epochs(trainer, range(trainer.min_epochs or 0))
    for option, steps in (("min_steps", trainer.min_steps), ("min_epochs", steps_of_least_epochs)):
        if steps is not None and steps > planned:
            raise UsageError(
                f"trainer.{option} {getattr(trainer, option)} has no effect: the fit has {counted(planned, 'step')}; "
                "lower it, or leave it out"
            )


def check_validations(trainer: pl.Trainer, max_epochs: int, max_steps: int) -> None:
    """Raise UsageError if the epoch of the first validation is beyond the end of a fit.

    Args:
        trainer: trainer of the fit.
        max_epochs: number of epochs of the fit, -1 for no limit.
        max_steps: number of optimizer steps of the fit, -1 for no limit. Next to a limit of epochs it is not checked:
            such a fit is resumed later.
    """
    option = "check_val_every_n_epoch"
    interval: float | None = trainer.check_val_every_n_epoch
    if interval is None:  # batches across epochs; None for a time
        option = "val_check_interval"
        interval = trainer.val_check_batch
    if not trainer.enable_validation or interval is None or not math.isfinite(interval):
        return
    batches = trainer.num_training_batches if option == "val_check_interval" else 1
    epochs_before = int((interval - 1) // batches)
    is_beyond = epochs_before >= max_epochs != -1
    if max_epochs == -1 and max_steps != -1:
        steps_before = steps_of_epochs(trainer, range(min(epochs_before, max_steps)))  # each epoch has a step or more
        is_beyond = steps_before is not None and steps_before >= max_steps
    if is_beyond:
        raise UsageError(
            f"trainer.{option} {interval} has no effect: the fit ends before its first validation; lower it, or set "
            "trainer.limit_val_batches 0 to train without validations"
        )


def is_whole_epoch(trainer: pl.Trainer) -> bool:
    """Return True if the current epoch has trained on its last batch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # which is declared as one without these counts
    is_skipped = progress.current.started < progress.current.ready  # on_train_batch_start returned -1
    return progress.is_last_batch and not is_skipped
