"""The table of a bench: methods by pairs of networks, with published numbers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hsakd_pl.files.escaping import for_latex, for_markdown, for_terminal
from hsakd_pl.recipes import Cell, Recipe
from hsakd_pl.report.groups import Group, groups
from hsakd_pl.report.rows import collect, result_files
from hsakd_pl.report.table import Line, Record, format_table, peer_cells, records, spread

PEERS = "peers: accuracy after the last epoch, of the best one by the same images; the ensemble averages logits"
UNCHANGED = "as the recipes say, [published]"
ESCAPES = {"md": for_markdown, "latex": for_latex}


def published(cells: Sequence[Cell]) -> list[Line]:
    """Return the table of published numbers, one line per method and one column per pair."""
    return _lines(cells, {(cell.method, cell.pair): cell.published or "-" for cell in cells})


def matrix(cells: Sequence[Cell], recipes: Mapping[str, Recipe], folder: Path, table_format: str) -> str:
    """Format the results of the cells below ``folder``: one table for each way in which runs differ from their recipes.

    A published number is shown only next to runs that do not differ, on the data that it belongs to.
    Unfinished runs are called so, and the marks of the runs are below their table.
    """
    tables: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    marks: dict[str, list[str]] = defaultdict(list)
    peers: dict[str, list[Line]] = defaultdict(list)
    numbers: list[Record] = []
    for cell in cells:
        for group in _groups(cell, recipes, folder):
            changed = group.name.removeprefix(cell.recipe).removeprefix(", ")
            (record,) = records([group])
            place = {"method": cell.method, "pair": cell.pair, "changed": changed, "published": cell.published}
            note = {"note": cell.note} if cell.note else {}
            numbers.append(place | note | record)
            tables[changed][cell.method, cell.pair] = _result(record, cell.published if group.comparable else "")
            if record["first_peer_mean"] is not None:
                mean = {"method": cell.method, "pair": cell.pair, "mean": spread(record, "last")}
                peers[changed].append(mean | peer_cells(record))
            if group.marks:
                marks[changed].append(f"{cell.method}, {cell.pair}: {'; '.join(group.marks)}")
    if table_format in ("csv", "json"):
        return format_table([], numbers, table_format)
    escape = ESCAPES.get(table_format, for_terminal)
    sections = []
    for changed, texts in tables.items():
        table = format_table(_lines(cells, texts), [], table_format)
        notes = "".join(f"\n\n{escape(mark)}" for mark in marks[changed])
        if peers[changed]:
            notes = f"\n\n{PEERS}\n\n{format_table(peers[changed], [], table_format).strip()}{notes}"
        sections.append(f"{escape(changed or UNCHANGED)}\n\n{table.strip()}{notes}")
    return "\n\n".join(sections)


def _result(record: Record, published_number: str) -> str:
    unvalidated = "not validated at its end" if record["n"] else "unfinished"
    result = spread(record, "last") or unvalidated
    if record["n"] > 1:
        result += f" ({record['n']} seeds)"
    if published_number:
        result += f" [{published_number}]"
    return result


def _groups(cell: Cell, recipes: Mapping[str, Recipe], folder: Path) -> Iterator[Group]:
    """Yield the runs of a cell as groups of one protocol each."""
    if result_files(folder / cell.recipe):
        rows = [row | {"recipe": cell.recipe} for row in collect(folder / cell.recipe)]
        yield from groups(rows, recipes)


def _lines(cells: Sequence[Cell], texts: Mapping[tuple[str, str], str]) -> list[Line]:
    """Arrange texts by method and pair, with a last column of notes if there are any; empty methods are left out."""
    methods = dict.fromkeys(cell.method for cell in cells)
    pairs = dict.fromkeys(cell.pair for cell in cells)
    notes = {cell.method: cell.note for cell in cells if cell.note}
    table = []
    for method in methods:
        row = {pair: texts.get((method, pair), "") for pair in pairs}
        if any(row.values()):
            note = {"note": notes.get(method, "")} if notes else {}
            table.append({"method": method} | row | note)
    return table
