"""How long the runs of a bench take, from a few steps of each on this machine."""

import io
import logging
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.commands.bench.tasks import Bench, Task
from hsakd_pl.modules.build import RANDOM

STEPS, WARMUP = 8, 3  # of training; as many more come first


class Stopwatch(pl.Callback):
    """Takes the time of a few batches of validation and of training, then ends the fit.

    ``hours``: what all epochs take at this rate, once the fit has ended.
    """

    hours = 0.0

    def __init__(self) -> None:
        self.marks: dict[str, list[float]] = {"validation": [], "training": []}

    def _mark(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks[part].append(time.perf_counter())

    def on_validation_batch_end(self, *_: Any) -> None:
        self._mark("validation")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._mark("training")
        if len(self.marks["training"]) == min(STEPS + WARMUP, int(trainer.num_training_batches)):
            trainer.should_stop, trainer.limit_val_batches = True, 0
            batches = {"training": trainer.num_training_batches, "validation": sum(trainer.num_val_batches)}
            each = {part: self._step(part) * count for part, count in batches.items()}
            validated = 1 / (trainer.check_val_every_n_epoch or 1)
            self.hours = (each["training"] + validated * each["validation"]) * max(1, trainer.max_epochs or 1) / 3600

    def _step(self, part: str) -> float:
        marks = self.marks[part]
        return median([later - sooner for sooner, later in pairwise(marks)][-STEPS:] or [0.0])


class Trial(HSAKDCLI):
    """A fit that the stopwatch ends."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        made = super().instantiate_trainer(**kwargs)
        self.stopwatch = Stopwatch()
        made.callbacks.append(self.stopwatch)  # type: ignore[attr-defined]  # set without a declaration
        return made


def hours_of(bench: Bench, task: Task) -> float:
    """Measure a task; weights that are not there yet are random, which takes as long."""
    options = [
        RANDOM if Path(each).name == "last.ckpt" and not Path(each).exists() else each for each in bench.arguments(task)
    ]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        quiet = [f"--trainer.{name}=false" for name in ("enable_checkpointing", "enable_progress_bar", "logger")]
        trial = Trial(
            args=["fit", *options, "--trainer.default_root_dir", folder, "--trainer.num_sanity_val_steps=5", *quiet]
        )
    return trial.stopwatch.hours


def show_plan(bench: Bench, tasks: list[Task]) -> None:
    """Print the tasks by number, with hours as they are measured, the sum, and what starts them under SLURM."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    hours: dict[str, float] = {}
    total = 0.0
    for number, task in enumerate(tasks):
        state = bench.state(task)
        if state in ("to do", "begun") and task.recipe not in hours:
            hours[task.recipe] = hours_of(bench, task)
        left = hours[task.recipe] if state in ("to do", "begun") else 0.0
        total += left
        print(f"{number:>4}  {state:<7} {left:>8.2f} h  {task.recipe}, seed {task.seed}", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{total:.1f} hours, one after the other, on this machine ({device})")
    stages = sorted({task.stage for task in tasks})
    for stage in stages:
        numbers = [number for number, task in enumerate(tasks) if task.stage == stage]
        print(f"SLURM: --array {numbers[0]}-{numbers[-1]}" + (" after those before" if stage else ""))
