"""The tables of the bench: methods by pairs of networks, with a recipe and a published number per cell.

A table is a CSV file with one method per line. Its columns:

``method``: name of the method; in parentheses it is shown in no table, and only trained where others need it.
``recipe``: name of its recipes, ``FOLDER/METHOD_NETWORKS``, with ``{teacher}`` and ``{student}`` for the networks.
``class``: class path of the module, empty for recipes that exist already.
``options`` and ``data``: options of the module and of the data module, written ``a: 1; b: 2``. An option whose value is
``runs/RECIPE/last.ckpt`` names the recipe that is trained first.
A table may also have these columns, which its output shows:
``views``: transformed or augmented copies of an image in a training step.
``published_epoch``: epoch of the published numbers: ``best`` on the test split, ``last``, or empty if it is not known.
``note``: in what the published protocol differs from that of the recipe.
A recipe has one configuration: lines, pairs or tables that give the same name to different ones are an error.
Then one column per pair, ``TEACHER-STUDENT``: the published accuracy in percent, or ``-``; after it, options of this
pair alone, ``75.2; beta: 2.0``. An empty cell is not run. A number that was not read in the method's own paper or
repository has a mark: ``75.2 second-hand`` from another publication, ``75.2 logged`` a mean of runs that the authors
noted outside their tables, ``75.2 ?`` to be verified. ``75.2 defaults`` is the number of a run whose constants are not
printed: the recipe has the defaults of the module. Several marks are separated by commas.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text
from hsakd_pl.recipes.paper import RECIPES
from hsakd_pl.recipes.recipe import Recipe, checkpoint_of, make_recipe

BENCH_TABLES = {path.stem: path for path in sorted(Path(__file__).with_name("tables").glob("*.csv"))}
COLUMNS = ("method", "recipe", "class", "options", "data")
OPTIONAL_COLUMNS = ("views", "published_epoch", "note")
PUBLISHED_EPOCHS = ("", "best", "last")
# The ways in which the name of a recipe may name its networks
NETWORKS = ("{teacher}-{student}", "{student}-{student}", "{teacher}", "{student}")
MARKS = ("second-hand", "logged", "?", "defaults")  # of published numbers, by their origin and constants
ANY_MARK = "|".join(map(re.escape, MARKS))
PUBLISHED = re.compile(rf"-|\d+\.?\d*( \+- \d+\.?\d*)?( ({ANY_MARK})(, ({ANY_MARK}))*)?")


class Cell(NamedTuple):
    """A method on a pair of networks.

    Attributes:
        method: name of the method.
        pair: ``TEACHER-STUDENT``.
        recipe: name of the recipe.
        published: published accuracy, or ``""``.
        views: copies of an image in a training step, or ``""`` if the table does not say.
        published_epoch: epoch of the published accuracy, one of :data:`PUBLISHED_EPOCHS`.
        note: note on the published protocol, or ``""``.
    """

    method: str
    pair: str
    recipe: str
    published: str
    views: str = ""
    published_epoch: str = ""
    note: str = ""


class Table(NamedTuple):
    """The cells of methods that give results, and by name the recipes that the table itself describes."""

    cells: list[Cell]
    recipes: dict[str, Recipe]


def read_table(path: str | Path, recipes: Mapping[str, Recipe] = RECIPES) -> Table:
    """Read a table.

    Args:
        path: a CSV file.
        recipes: recipes by name, which the table may refer to.

    Raises:
        UsageError: if the file is not a table; names file, line and column.
    """
    reader = csv.DictReader(StringIO(read_text(path)), strict=True)
    try:
        lines = list(reader)
    except csv.Error as error:
        raise UsageError(f"{path} is not valid CSV: {error}") from error
    header = tuple(reader.fieldnames or ())
    pairs = [column for column in header[len(COLUMNS) :] if column not in OPTIONAL_COLUMNS]
    if header[: len(COLUMNS)] != COLUMNS or not all(pair.count("-") == 1 for pair in pairs):
        raise UsageError(f"{path}: its first line has to be {','.join(COLUMNS)} and <teacher>-<student> for each pair")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise UsageError(f"{path}: the column {', '.join(repeated)} appears more than once: keep one of them")
    if not lines:
        raise UsageError(f"{path} has no line after its header: add one for each method")
    table = Table([], {})
    for number, line in enumerate(lines, 2):
        if None in line.values() or None in line:
            raise UsageError(f"{path}, line {number} has not as many cells as the first line")
        _check_protocol(line, f"{path}, line {number}")
        if not any(line[pair] for pair in pairs):
            raise UsageError(f"{path}, line {number} has no pair: write - below a pair without a published number")
        for pair in pairs:
            if line[pair]:
                _read_cell(table, line, pair, recipes, f"{path}, line {number}, {pair}")
    return table


def _check_protocol(line: Mapping[str, str], place: str) -> None:
    """Raise UsageError if an optional column of a line has a value that it cannot have."""
    views = line.get("views", "")
    if not re.fullmatch(r"|[1-9]\d*", views):
        raise UsageError(f"{place}: views is {views!r}: write a whole number from 1, or nothing")
    epoch = line.get("published_epoch", "")
    if epoch not in PUBLISHED_EPOCHS:
        raise UsageError(f"{place}: published_epoch is {epoch!r}: write best, last, or nothing")


def _read_cell(table: Table, line: dict[str, str], pair: str, recipes: Mapping[str, Recipe], place: str) -> None:
    """Add a cell and its recipe to the table; ``place`` says in an error where the cell is."""
    published, _, pair_options = line[pair].partition("; ")
    if not PUBLISHED.fullmatch(published):
        raise UsageError(f"{place}: {published!r} is not an accuracy in percent, such as 75.2, nor -")
    published = published.strip("-")
    folder, _, experiment = line["recipe"].partition("/")
    networks = next((networks for networks in NETWORKS if experiment.endswith(f"_{networks}")), None)
    if networks is None or "/" in experiment:
        raise UsageError(f"{place}: recipe has to be <folder>/<method>_ and one of {', '.join(NETWORKS)}")
    teacher, student = pair.split("-")
    names = {"teacher": teacher, "student": student, "folder": folder}
    name = _filled(line["recipe"], names, place)
    method = line["method"]
    is_hidden = method.startswith("(") and method.endswith(")")
    if is_hidden:
        method = method[1:-1]
    if line["class"]:
        options = _parse_options(line["options"], names, place)
        if "network" not in options:
            options = _default_options(networks, names) | options
        options |= _parse_options(pair_options, names, place)
        needs = {option: recipe for option, value in options.items() if (recipe := _recipe_at(value)) is not None}
        described = make_recipe(
            name,
            title=f"{method}, {networks.format_map(names)}",
            module=line["class"],
            options={option: value for option, value in options.items() if option not in needs},
            needs=needs,
            data_options=_parse_options(line["data"], names, place),
            published=published,
        )
        _check_same(described, table.recipes.get(name) or recipes.get(name), place)
        table.recipes[name] = described
    elif name not in recipes:
        raise UsageError(f"{place}: no recipe {name} exists, so class has to name the module's class")
    else:
        published = published or recipes[name].published
    if not is_hidden:
        protocol = {column: line.get(column, "") for column in OPTIONAL_COLUMNS}
        cell = Cell(method, pair, name, published, **protocol)
        check_cells([*table.cells, cell], place)
        table.cells.append(cell)


def _check_same(recipe: Recipe, other: Recipe | None, place: str) -> None:
    """Raise UsageError if a recipe of the same name is another experiment, whose runs would share a folder."""
    if other is None:
        return
    if (recipe.config, recipe.needs) != (other.config, other.needs):
        raise UsageError(
            f"{place}: the recipe {recipe.name} has another configuration elsewhere ({other.title}): choose another "
            "name in the column recipe"
        )
    if recipe.published and other.published not in ("", recipe.published):
        raise UsageError(
            f"{place}: the recipe {recipe.name} has the published number {other.published} elsewhere, not "
            f"{recipe.published}: choose another name in the column recipe"
        )


def check_cells(cells: Sequence[Cell], place: str) -> None:
    """Raise UsageError if the last of these cells has the place of another one in the table of results."""
    *others, last = cells
    for cell in others:
        if (cell.method, cell.pair) == (last.method, last.pair) and cell != last:
            raise UsageError(
                f"{place}: {last.method} on {last.pair} is the recipe {last.recipe} [{last.published or '-'}] here and "
                f"{cell.recipe} [{cell.published or '-'}] elsewhere: give one of them another name in the column method"
            )


def _parse_options(cell: str, names: dict[str, str], place: str) -> dict[str, Any]:
    """Parse ``a: 1; b: 2``, in which ``{teacher}``, ``{student}`` and ``{folder}`` are placeholders."""
    text = _filled(cell.replace("; ", "\n"), names, place)
    try:
        options = yaml.safe_load(text) or {}
    except (yaml.YAMLError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{place}: cannot read the options {cell!r:.100}: {reason}") from error
    if not isinstance(options, dict):
        raise UsageError(f"{place}: options have to be written a: 1; b: 2, got {cell!r:.100}")
    return options


def _filled(text: str, names: Mapping[str, str], place: str) -> str:
    """Replace ``{teacher}`` and the like; raises UsageError for another placeholder. Braces of YAML stay."""
    for name in re.findall(r"\{(\w+)\}", text):
        if name not in names:
            raise UsageError(f"{place}: {{{name}}} is not one of {', '.join(f'{{{known}}}' for known in names)}")
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _default_options(networks: str, names: dict[str, str]) -> dict[str, Any]:
    """Return the options of a module that name networks, given those in the name of its recipe."""
    teacher = names["teacher"]
    student = names["student"]
    if networks == "{teacher}-{student}":
        weights = checkpoint_of(f"{names['folder']}/baseline_{teacher}")
        return {"network": student, "teacher": teacher, "teacher_weights": weights}
    if networks == "{student}-{student}":
        return {"networks": [student, student]}
    return {"network": networks.format_map(names)}


def _recipe_at(value: Any) -> str | None:
    """Return the recipe that leaves the checkpoint ``value``, None for anything else."""
    parts = PurePosixPath(value).parts if isinstance(value, str) else ()
    is_result = len(parts) > 2 and parts[0] == "runs" and parts[-1] == "last.ckpt"
    return "/".join(parts[1:-1]) if is_result else None


def _all_recipes() -> dict[str, Recipe]:
    recipes = dict(RECIPES)
    for path in BENCH_TABLES.values():
        recipes |= read_table(path, recipes).recipes
    return recipes


# The paper's recipes, and those of the tables that come with the package
ALL_RECIPES: Mapping[str, Recipe] = MappingProxyType(_all_recipes())
