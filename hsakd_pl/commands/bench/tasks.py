"""The runs of a bench: their order and their options."""

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import NamedTuple

from hsakd_pl.commands.seeds import Setting, check_same_setting, run_seed, setting_of, state_of
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path, naming, read_text, replacing
from hsakd_pl.recipes import Cell, Recipe


class Task(NamedTuple):
    """One run: a recipe with a seed. ``stage`` 0 needs no other run, 1 those of stage 0, and so on."""

    stage: int
    recipe: str
    seed: int


class Bench:
    """The cells of tables, the runs that they need, and the options of each run.

    Args:
        cells: methods on pairs of networks.
        recipes: all recipes that a run may need, by name.
        seeds: seeds of every run that is a result; runs that others need take seed 0, and a probe its student's seed.
        folder: folder of all runs.
        teachers: weight files by the name of a network or recipe, instead of training it.
        options: options of ``fit`` for all runs.
        answers: options of ``fit`` for the runs of modules that need only the teacher's logits.
    """

    def __init__(
        self,
        cells: list[Cell],
        recipes: Mapping[str, Recipe],
        seeds: list[int],
        folder: Path,
        teachers: dict[str, str],
        options: list[str],
        answers: Sequence[str] = (),
    ) -> None:
        self.cells = cells
        self.recipes = recipes
        self.seeds = seeds
        self.folder = folder
        self.teachers = teachers
        self.options = options
        self.answers = answers

    def tasks(self) -> list[Task]:
        """Return all runs, each once, after those that it needs."""
        tasks: dict[Task, None] = {}  # a set that keeps its order
        for cell in self.cells:
            for seed in self.seeds:
                tasks |= dict.fromkeys(self._with_needed(cell.recipe, seed))
        return sorted(tasks, key=lambda task: task.stage)

    def _with_needed(self, recipe: str, seed: int, *above: str) -> Iterator[Task]:
        if recipe in above:
            raise UsageError(f"{recipe} needs its own result: fix the weights that its table names")
        stage = 0
        for needed_recipe, needed_seed in self._needed(recipe, seed).values():
            earlier_tasks = list(self._with_needed(needed_recipe, needed_seed, recipe, *above))
            stage = max(stage, 1 + earlier_tasks[-1].stage)
            yield from earlier_tasks
        yield Task(stage, recipe, seed)

    def _needed(self, recipe: str, seed: int) -> dict[str, tuple[str, int]]:
        """Return recipe and seed of the runs whose weights this one starts from, by option, without those in a file."""
        needs = self.recipes[recipe].needs
        unknown = sorted(set(needs.values()) - self.recipes.keys())
        if unknown:
            raise UsageError(f"{recipe} needs {', '.join(unknown)}, which no table has: add a line for it")
        needed_seed = seed if self.recipes[recipe].same_seed else 0
        return {option: (needed, needed_seed) for option, needed in needs.items() if self._file(needed) is None}

    def _file(self, recipe: str) -> str | None:
        """Return the file that replaces a teacher's run: one for the recipe's name, or for its network's."""
        name = self._teacher_name(recipe)
        return None if name is None else self.teachers[name]

    def _teacher_name(self, recipe: str) -> str | None:
        """Return the first name of a teacher's recipe that ``teachers`` has a file for."""
        return next((name for name in _names_of_teacher(recipe) if name in self.teachers), None)

    def check_teachers(self, tasks: list[Task]) -> None:
        """Raise UsageError for a teacher that none of the tasks starts from, and for a file that is missing."""
        needed = {recipe for task in tasks for recipe in self.recipes[task.recipe].needs.values()}
        used = {self._teacher_name(recipe) for recipe in needed}
        unused = [name for name in self.teachers if name not in used]
        if unused:
            names = sorted({name for recipe in needed for name in _names_of_teacher(recipe)})
            raise UsageError(
                f"teachers: no task starts from {', '.join(unused)}; they start from {', '.join(names) or 'nothing'}: "
                "leave out the others"
            )
        for name, file in self.teachers.items():
            if not local_path("teachers", file).is_file():
                raise UsageError(f"teachers: the file of {name}, {file}, does not exist: check the path")

    def check_finished(self, tasks: list[Task]) -> None:
        """Raise UsageError if a task has a result of other options than it would have now."""
        settings: dict[str, Setting] = {}
        for task in tasks:
            if self.state(task) in ("done", "trained"):
                if task.recipe not in settings:
                    settings[task.recipe] = setting_of([*self.arguments(task), *self.answer_options(task)])
                check_same_setting(self.checkpoint(task.recipe, task.seed).parent, settings[task.recipe])

    def arguments(self, task: Task) -> list[str]:
        """Return the options of ``fit`` for a task: its recipe, the files of its weights, and the options of all."""
        needed = self._needed(task.recipe, task.seed)
        arguments = ["--config", str(self._recipe_file(task.recipe))]
        for option, recipe in self.recipes[task.recipe].needs.items():
            path = self.checkpoint(*needed[option]) if option in needed else self._file(recipe)
            arguments += [f"--model.init_args.{option}", str(path)]
        return arguments + self.options

    def checkpoint(self, recipe: str, seed: int) -> Path:
        """Return the file of a run's result."""
        return self.folder / recipe / f"seed{seed}" / "last.ckpt"

    def _recipe_file(self, recipe: str) -> Path:
        path = self.folder / "recipes" / f"{recipe}.yaml"
        text = self.recipes[recipe].text
        with naming(path):
            is_written = path.exists() and read_text(path) == text
        if not is_written:
            with replacing(path) as file:
                file.write(text)
        return path

    def state(self, task: Task) -> str:
        """Return whether a task is ``done``, ``trained`` but not tested, ``begun``, or ``to do``."""
        return state_of(self.checkpoint(task.recipe, task.seed).parent)

    def run(self, task: Task) -> None:
        """Train and test in this process, or resume; raises UsageError where the results that it needs are missing."""
        for recipe, seed in self._needed(task.recipe, task.seed).values():
            if self.state(Task(0, recipe, seed)) not in ("done", "trained"):
                raise UsageError(f"{task.recipe} needs {self.checkpoint(recipe, seed)}: run that task first")
        run_seed(task.seed, [*self.arguments(task), *self.answer_options(task)], self.folder / task.recipe)

    def question(self, task: Task) -> Hashable:
        """Return what the teacher's answers for a task belong to, equal for tasks that share them; None without any."""
        if not self.answer_options(task):
            return None
        recipe = self.recipes[task.recipe]
        teacher = recipe.model.get("init_args", {}).get("teacher")
        return teacher, recipe.needs.get("teacher_weights"), json.dumps(recipe.data, sort_keys=True), task.seed

    def answer_options(self, task: Task) -> Sequence[str]:
        """Return the options that keep the teacher's answers, nothing for a module that cannot use them."""
        module = locate(self.recipes[task.recipe].model["class_path"]) if self.answers else None
        return self.answers if getattr(module, "needs_only_logits", False) else ()


def _names_of_teacher(recipe: str) -> list[str]:
    """Return the names by which a teacher may be called: that of its recipe, and of its network."""
    name = recipe.partition("/")[2]
    return [name, re.sub("^(baseline|teacher_joint|teacher_frozen)_", "", name)]
