"""The table of a bench: methods by pairs of networks, published numbers beside ours."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hsakd_pl.recipes import Cell, Recipe
from hsakd_pl.records.formats import RESULT_FILE
from hsakd_pl.report.groups import Group, groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import Line, Record, records, spread, written

AS_PUBLISHED = "as the recipes say, [published]"


def published(cells: Sequence[Cell]) -> list[Line]:
    """Lay out the published numbers of the cells, a line a method and a column a pair."""
    return _lines(cells, {(cell.method, cell.pair): cell.published or "-" for cell in cells})


def matrix(cells: Sequence[Cell], recipes: Mapping[str, Recipe], folder: Path, form: str) -> str:
    """Write what lies below ``folder`` of the cells: a table for each way in which runs differ from their recipes.

    A published number stands only beside runs that do not differ. Of runs that are not over it says so.
    """
    tables: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    numbers: list[Record] = []
    for cell in cells:
        for group in _groups(cell, recipes, folder):
            changed = group.name.removeprefix(cell.recipe).removeprefix(", ")
            record = {"method": cell.method, "pair": cell.pair, "changed": changed, "published": cell.published}
            numbers.append(record | (found := records([group])[0]))
            ours = spread(found, "last") or "unfinished"
            ours += f" ({found['n']} seeds)" if found["n"] > 1 else ""
            beside = f" [{cell.published}]" if cell.published and not changed else ""
            tables[changed][cell.method, cell.pair] = ours + beside
    if form in ("csv", "json"):
        return written([], numbers, form)
    texts = {name or AS_PUBLISHED: written(_lines(cells, table), [], form) for name, table in tables.items()}
    return "\n\n".join(f"{name}\n\n{text.strip()}" for name, text in texts.items())


def _groups(cell: Cell, recipes: Mapping[str, Recipe], folder: Path) -> Iterator[Group]:
    """Yield the runs of a cell, as groups of one protocol each."""
    if any((folder / cell.recipe).glob(f"**/{RESULT_FILE}")):
        rows = [row | {"recipe": cell.recipe} for row in collect(folder / cell.recipe)]
        yield from groups(rows, recipes)


def _lines(cells: Sequence[Cell], texts: dict[tuple[str, str], str]) -> list[Line]:
    methods, pairs = (dict.fromkeys(getattr(cell, name) for cell in cells) for name in ("method", "pair"))
    table = [{"method": method, **{pair: texts.get((method, pair), "") for pair in pairs}} for method in methods]
    return [line for line in table if any(line[pair] for pair in pairs)]
