"""Estimate how long the runs of a bench take, from a few steps of each on this machine."""

import io
import logging
import tempfile
import time
from collections.abc import Hashable
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.commands.bench.tasks import Bench, Task
from hsakd_pl.files.escaping import show
from hsakd_pl.modules.build import RANDOM
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


class Hours(NamedTuple):
    """The hours that a task takes if it asks its teacher, and if it reads kept answers."""

    asking: float
    reading: float


def measure_hours(bench: Bench, task: Task) -> Hours:
    """Measure a task; weights that do not exist yet are random, which takes as long.

    Answers are kept in a new folder on the disk of the bench's, which do not change.
    """
    arguments = bench.arguments(task)
    for position, argument in enumerate(arguments):
        path = Path(argument)
        if path.name == "last.ckpt" and not path.exists():
            arguments[position] = RANDOM
    answers = bench.answer_options(task)
    if not answers:
        hours = _measured(arguments)
        return Hours(hours, hours)
    _, answers_folder, *_ = answers
    path = Path(answers_folder).resolve()
    disk = next(folder for folder in (path, *path.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        arguments += [
            *answers,
            "--model.init_args.teacher_answers",
            folder,
            "--model.init_args.teacher_answers_gb=.inf",
        ]
        return Hours(asking=_measured(arguments), reading=_measured(arguments))


def _measured(arguments: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        placed = ["--trainer.default_root_dir", folder]
        fit = MeasuredFit(args=["fit", *arguments, *placed, *MEASURING_OPTIONS])
    return fit.stopwatch.hours


def show_plan(bench: Bench, tasks: list[Task]) -> None:
    """Print the tasks by number, the hours of each and of all, and the arrays that start them under SLURM."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    hours_by_recipe: dict[str, Hours] = {}
    asked: set[Hashable] = set()
    total = 0.0
    for number, task in enumerate(tasks):
        state = bench.state(task)
        hours = 0.0
        reads = ""
        if state in ("to do", "begun"):
            if task.recipe not in hours_by_recipe:
                hours_by_recipe[task.recipe] = measure_hours(bench, task)
            question = bench.question(task)
            if question is not None and question in asked:
                reads = ", reads answers"
            hours = hours_by_recipe[task.recipe].reading if reads else hours_by_recipe[task.recipe].asking
            asked.add(question)
        total += hours
        show(f"{number:>4}  {state:<7} {hours:>8.2f} h  {task.recipe}, seed {task.seed}{reads}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{total:.1f} hours, one after the other, on this machine ({device})")
    if bench.answers:
        print("Of the runs that keep answers, the first of a teacher and seed asks it; those kept before do not count")
    for stage in sorted({task.stage for task in tasks}):
        numbers = [number for number, task in enumerate(tasks) if task.stage == stage]
        after = " after those before" if stage else ""
        print(f"SLURM: --array {numbers[0]}-{numbers[-1]}{after}")
