"""The part of the tables of a bench that is chosen, which needs neither PyTorch nor Lightning."""

from collections.abc import Mapping

from hsakd_pl.commands.options import check_unrepeated
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.recipes import ALL_RECIPES, BENCH_TABLES, Cell, Recipe, check_cells, read_table


def select_cells(tables: list[str], methods: list[str], pairs: list[str]) -> tuple[list[Cell], Mapping[str, Recipe]]:
    """Return the cells of the tables, pair by pair, and all recipes that they may need, by name.

    Raises:
        UsageError: for a method or pair that no table has, and for two experiments with one name.
    """
    for kind, names in (("table", tables), ("method", methods), ("pair", pairs)):
        check_unrepeated(f"{kind}s", names)
    cells: list[Cell] = []
    recipes = dict(ALL_RECIPES)
    for name in tables:
        table = read_table(BENCH_TABLES.get(name) or local_path("table", name), recipes)
        recipes |= table.recipes
        cells += table.cells
    if not cells:
        raise UsageError(f"{' and '.join(tables)}: all methods are in parentheses, for others that need them: add one")
    cells = _with_values("method", cells, methods)
    cells = _with_values("pair", cells, pairs)
    cells = list(dict.fromkeys(cells))
    for number in range(len(cells)):
        check_cells(cells[: number + 1], " and ".join(tables))
    order = list(dict.fromkeys(cell.pair for cell in cells))
    return sorted(cells, key=lambda cell: order.index(cell.pair)), recipes


def _with_values(field: str, cells: list[Cell], wanted: list[str]) -> list[Cell]:
    """Return the cells whose ``field`` has one of these values, or all cells if there are none."""
    if not wanted:
        return cells
    values = list(dict.fromkeys(getattr(cell, field) for cell in cells))
    for value in wanted:
        if value not in values:
            raise UsageError(f"{field}s: {value} is not one of {' '.join(values)}")
    return [cell for cell in cells if getattr(cell, field) in wanted]
