"""The tables of the bench: methods x pairs of networks, a recipe and a published number a cell.

A table is a CSV file. Its line a method: ``method``, what it is called; ``recipe``, the name of its recipes, in which
``{teacher}`` and ``{student}`` say what networks it takes; ``class``, of its module (of a recipe that is known, none);
``options`` of the module and ``data`` of the data, as ``a: 1; b: 2``; then a column a pair, with the published number,
or ``-``, behind it options that the pair alone has, and nothing where the method is not run. What ``(...)`` names is
only what others need.
"""

import csv
import re
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text
from hsakd_pl.recipes.paper import RECIPES, Recipe, make_recipe

FOLDER = Path(__file__).with_name("tables")
TABLES = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
COLUMNS = ("method", "recipe", "class", "options", "data")
# What a module takes, by the networks in the name of its recipe, where its options name none
TAUGHT = "network: {student}; teacher: {teacher}; teacher_weights: runs/{folder}/baseline_{teacher}/last.ckpt"
NETWORKS = {
    "{teacher}-{student}": TAUGHT,
    "{student}-{student}": "networks: [{student}, {student}]",
    "{teacher}": "network: {teacher}",
    "{student}": "network: {student}",
}


class Cell(NamedTuple):
    """A method on a pair of networks: the name of its recipe, and the published accuracy or ""."""

    method: str
    pair: str
    recipe: str
    published: str


class Table(NamedTuple):
    """The cells of methods that give results, and all recipes that the table itself describes, by name."""

    cells: list[Cell]
    recipes: dict[str, Recipe]


def read_table(path: str | Path) -> Table:
    """Read a table; UsageError naming file, line and column where it is none."""
    reader = csv.DictReader(StringIO(read_text(path)), strict=True)
    try:
        table, lines = Table([], {}), list(reader)
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV: {error}") from error
    pairs = list(reader.fieldnames or ())[len(COLUMNS) :]
    if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS or not all(pair.count("-") == 1 for pair in pairs):
        raise UsageError(f"{path}: its first line has to be {','.join(COLUMNS)} and <teacher>-<student> for each pair")
    for number, line in enumerate(lines, 2):
        if None in line.values() or None in line:
            raise UsageError(f"{path}, line {number} has not as many cells as the first line")
        for pair in filter(line.__getitem__, pairs):
            _add(table, line, pair, f"{path}, line {number}, {pair}")
    return table


def _add(table: Table, line: dict[str, str], pair: str, place: str) -> None:
    published, *own = line[pair].split("; ", 1)
    if not re.fullmatch(r"-|\d+\.?\d*( \+- \d+\.?\d*)?", published):
        raise UsageError(f"{place}: {published!r} is no accuracy in percent, such as 75.2, nor -")
    folder, _, name = line["recipe"].partition("/")
    networks = next((networks for networks in NETWORKS if name.endswith(f"_{networks}")), None)
    if networks is None or "/" in name:
        raise UsageError(f"{place}: recipe has to be <folder>/<method>_ and one of {', '.join(NETWORKS)}")
    names = dict(zip(("teacher", "student"), pair.split("-"), strict=True))
    method = re.sub(r"^\((.*)\)$", r"\1", line["method"])
    recipe, number = line["recipe"].format(**names), published.strip("-")
    if line["class"]:
        usual = "" if "network: " in line["options"] else NETWORKS[networks]
        options = "; ".join(filter(None, (usual, line["options"], *own))).format(folder=folder, **names)
        title = f"{method}, {networks.format(**names)}"
        table.recipes[recipe] = make_recipe(recipe, number, line["class"], title, options, line["data"])
    elif recipe not in KNOWN:
        raise UsageError(f"{place}: there is no recipe {recipe}, so class has to name the module's")
    else:
        number = number or KNOWN[recipe].paper
    if method == line["method"]:
        table.cells.append(Cell(method, pair, recipe, number))


KNOWN = dict(RECIPES)  # the paper's recipes, and those of the bench's tables
for path in TABLES.values():
    KNOWN.update(read_table(path).recipes)
