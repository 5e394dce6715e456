"""Estimate how long the runs of a bench take, from a few steps of each on this machine."""

import logging
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

from hsakd_pl.commands.bench.tasks import Bench, Task
from hsakd_pl.commands.estimate import device_name, measured_hours
from hsakd_pl.files.escaping import show
from hsakd_pl.modules.build import RANDOM


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
        hours = measured_hours(arguments)
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
        return Hours(asking=measured_hours(arguments), reading=measured_hours(arguments))


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
    print(f"{total:.1f} hours, one after the other, on this machine ({device_name()})")
    if bench.answers:
        print("Of the runs that keep answers, the first of a teacher and seed asks it; those kept before do not count")
    for stage in sorted({task.stage for task in tasks}):
        numbers = [number for number, task in enumerate(tasks) if task.stage == stage]
        after = " after those before" if stage else ""
        print(f"SLURM: --array {numbers[0]}-{numbers[-1]}{after}")
