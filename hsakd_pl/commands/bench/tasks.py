"""The runs that a bench is: which, in what order, and with what options."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hsakd_pl.commands.seeds import run_seed
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path, replacing
from hsakd_pl.recipes import ALL_RECIPES, BENCH_TABLES, Cell, Recipe, read_table
from hsakd_pl.records.formats import RESULT_FILE, TEST_FILE, is_finished


class Task(NamedTuple):
    """One run: a recipe with a seed. ``stage`` 0 needs no other run, 1 those of stage 0, and so on."""

    stage: int
    recipe: str
    seed: int


class Bench:
    """What was asked for: the cells of the tables, the runs that they are, and the options of each.

    Args:
        cells: methods and pairs.
        recipes: all recipes that a run may need, by name.
        seeds: of every run that is a result; what others need takes seed 0, and a probe the seed of its student.
        folder: below which runs lie.
        teachers: files by the name of a network, instead of training it.
        options: of ``fit``, for all runs.
    """

    def __init__(
        self,
        cells: list[Cell],
        recipes: Mapping[str, Recipe],
        seeds: list[int],
        folder: Path,
        teachers: dict[str, str],
        options: list[str],
    ) -> None:
        self.cells = cells
        self.recipes = recipes
        self.seeds = seeds
        self.folder = folder
        self.teachers = teachers
        self.options = options

    def tasks(self) -> list[Task]:
        """All runs, each once, those that others need before them."""
        wanted = [(cell.recipe, seed) for cell in self.cells for seed in self.seeds]
        found = {task: None for recipe, seed in wanted for task in self._with_needed(recipe, seed)}
        return sorted(found, key=lambda task: task.stage)

    def _with_needed(self, recipe: str, seed: int, *above: str) -> Iterator[Task]:
        if recipe in above:
            raise UsageError(f"{recipe} needs its own result: mend the weights that its table names")
        stage = 0
        for needed, of_seed in self._needed(recipe, seed).values():
            before = list(self._with_needed(needed, of_seed, recipe, *above))
            stage = max(stage, 1 + before[-1].stage)
            yield from before
        yield Task(stage, recipe, seed)

    def _needed(self, recipe: str, seed: int) -> dict[str, tuple[str, int]]:
        """Recipe and seed of the runs whose weights this one starts from, by option, without those that have a file."""
        needs = self.recipes[recipe].needs
        if unknown := set(needs.values()) - self.recipes.keys():
            raise UsageError(f"{recipe} needs {', '.join(sorted(unknown))}, which no table has: add a line for it")
        needed_seed = seed if self.recipes[recipe].same_seed else 0
        return {option: (needed, needed_seed) for option, needed in needs.items() if self._file(needed) is None}

    def _file(self, recipe: str) -> str | None:
        """The file that stands for a teacher's run: one for its network's name, or for the recipe's."""
        name = recipe.partition("/")[2]
        network = re.sub("^(baseline|teacher_joint|teacher_frozen)_", "", name)
        return self.teachers.get(name) or self.teachers.get(network)

    def arguments(self, task: Task) -> list[str]:
        """The options of ``fit`` for a task: its recipe, where its weights lie, and what was asked for all."""
        weights = {option: self._file(recipe) for option, recipe in self.recipes[task.recipe].needs.items()}
        weights |= {option: str(self.checkpoint(*of)) for option, of in self._needed(task.recipe, task.seed).items()}
        given = [each for option, path in weights.items() for each in (f"--model.init_args.{option}", str(path))]
        return ["--config", str(self._recipe_file(task.recipe)), *given, *self.options]

    def checkpoint(self, recipe: str, seed: int) -> Path:
        """Where a run leaves its result."""
        return self.folder / recipe / f"seed{seed}" / "last.ckpt"

    def _recipe_file(self, recipe: str) -> Path:
        path = self.folder / "recipes" / f"{recipe}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.recipes[recipe].text
        if not path.exists() or path.read_text() != text:
            with replacing(path) as file:
                file.write(text)
        return path

    def state(self, task: Task) -> str:
        """Whether a task is done, trained but not tested, begun, or still to do."""
        checkpoint = self.checkpoint(task.recipe, task.seed)
        if is_finished(checkpoint.with_name(RESULT_FILE)):
            return "done" if checkpoint.with_name(TEST_FILE).exists() else "trained"
        return "begun" if checkpoint.exists() else "to do"

    def run(self, task: Task) -> None:
        """Train and test in this process, or go on with it; UsageError where what it needs is not there yet."""
        for of in self._needed(task.recipe, task.seed).values():
            if self.state(Task(0, *of)) not in ("done", "trained"):
                raise UsageError(f"{task.recipe} needs {self.checkpoint(*of)}: run that task before")
        run_seed(task.seed, self.arguments(task), self.folder / task.recipe)


def select_cells(tables: list[str], methods: list[str], pairs: list[str]) -> tuple[list[Cell], Mapping[str, Recipe]]:
    """Return the cells of the tables, pair by pair, and all recipes that they may need, by name.

    Raises:
        UsageError: for a method or pair that no table has.
    """
    cells: list[Cell] = []
    recipes = dict(ALL_RECIPES)
    for name in tables:
        table = read_table(BENCH_TABLES.get(name) or local_path("table", name), recipes)
        recipes |= table.recipes
        cells += table.cells
    for option, asked in (("method", methods), ("pair", pairs)):
        known = list(dict.fromkeys(getattr(cell, option) for cell in cells))
        for name in asked:
            if name not in known:
                raise UsageError(f"{option}s: {name} is none of {' '.join(known)}")
        cells = [cell for cell in cells if not asked or getattr(cell, option) in asked]
    order = list(dict.fromkeys(cell.pair for cell in cells))
    return sorted(cells, key=lambda cell: order.index(cell.pair)), recipes
