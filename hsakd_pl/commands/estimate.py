"""Estimate how long a fit takes, from a few of its steps on this machine."""

import io
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.modules.trainers import callbacks_of

MEASURED_STEPS = 8
WARMUP_STEPS = 3
MEASURING_OPTIONS = [
    "--trainer.num_sanity_val_steps=5",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
]


class Stopwatch(pl.Callback):
    """Measure a few batches of validation and of training, then end the fit.

    ``hours``: time that all epochs take at this rate, known once the fit has ended.
    """

    def __init__(self) -> None:
        self.hours = 0.0
        self.validation_times: list[float] = []
        self.training_times: list[float] = []

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validation_times.append(_now())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.training_times.append(_now())
        training_batches = int(trainer.num_training_batches)
        if len(self.training_times) == min(MEASURED_STEPS + WARMUP_STEPS, training_batches):
            trainer.should_stop = True
            trainer.limit_val_batches = 0
            training = _seconds_per_batch(self.training_times) * training_batches
            validation = _seconds_per_batch(self.validation_times) * sum(trainer.num_val_batches)
            seconds_per_epoch = training + validation / (trainer.check_val_every_n_epoch or 1)
            self.hours = seconds_per_epoch * max(1, trainer.max_epochs or 1) / 3600


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds_per_batch(times: list[float]) -> float:
    seconds = [later - earlier for earlier, later in pairwise(times)]
    return median(seconds[-MEASURED_STEPS:] or [0.0])


class MeasuredFit(HSAKDCLI):
    """A fit that the stopwatch ends."""

    def _check_effective(self) -> None:
        """Accept options that have no effect on a fit without checkpoints: the task itself has them."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        self.stopwatch = Stopwatch()
        callbacks_of(trainer).append(self.stopwatch)
        return trainer


def measured_hours(arguments: list[str]) -> float:
    """Return the hours that ``fit`` takes with these options; nothing is written."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        placed = ["--trainer.default_root_dir", folder]
        fit = MeasuredFit(args=["fit", *arguments, *placed, *MEASURING_OPTIONS])
    return fit.stopwatch.hours


def device_name() -> str:
    """Return the name of the GPU, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
