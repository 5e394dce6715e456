"""The tables of a bench: methods by pairs of networks with published numbers, their protocols, and their costs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hsakd_pl.recipes import Cell, Recipe
from hsakd_pl.report.groups import Group, groups
from hsakd_pl.report.rows import collect, result_files
from hsakd_pl.report.table import (
    COSTS_CAPTION,
    ESCAPES,
    NUMBERS,
    PEERS_CAPTION,
    Line,
    Record,
    cost_cells,
    format_table,
    peer_cells,
    records,
    spread,
    without_empty,
)

PROTOCOLS_CAPTION = (
    "Protocols; published_epoch: best on the test split, last, or ? if unknown. Measured numbers are of the last epoch"
)
UNCHANGED = "as the recipes say, [published]"
Place = tuple[str, str]  # method and pair
Kind = tuple[str, str]  # label of the data, and what runs change of their recipes


def published(cells: Sequence[Cell], recipes: Mapping[str, Recipe], table_format: str) -> str:
    """Format the published numbers, one line per method and one column per pair, and the protocols of the recipes.

    These are a second table in text, and further columns in csv and json.
    """
    numbers = _lines(cells, {(cell.method, cell.pair): cell.published or "-" for cell in cells})
    planned = {cell.recipe: recipes[cell.recipe].trainer.get("max_epochs") for cell in cells}
    facts = {(cell.method, cell.pair): {"epochs": planned[cell.recipe], "views": cell.views} for cell in cells}
    protocols = _protocol_lines(cells, facts)
    if table_format in NUMBERS:
        joined = [line | protocol for line, protocol in zip(numbers, protocols, strict=True)]
        return format_table([], joined, table_format)
    tables = [format_table(table, [], table_format).strip("\n") for table in (numbers, without_empty(protocols))]
    return f"\n\n{ESCAPES[table_format](PROTOCOLS_CAPTION)}\n\n".join(tables)


def matrix(cells: Sequence[Cell], recipes: Mapping[str, Recipe], folder: Path, table_format: str) -> str:
    """Format the results of the cells below ``folder``: a section per data set and change of the recipes.

    A section has a table of accuracies, one of protocols, and one of costs. A published number is shown only next to
    runs that do not differ, on the data that it belongs to. Unfinished runs are called so, and the marks of the runs
    end their section. In csv and json all of this is in one record for each cell.
    """
    sections: dict[Kind, dict[Place, tuple[Group, Record]]] = defaultdict(dict)
    for cell in cells:
        for group in _groups(cell, recipes, folder):
            (record,) = records([group])
            record["views"] = record["views"] or (int(cell.views) if cell.views else None)
            sections[record["data"], ", ".join(group.changed)][cell.method, cell.pair] = (group, record)
    if table_format in NUMBERS:
        return format_table([], list(_numbers(cells, sections)), table_format)
    return "\n\n".join(_section(cells, kind, runs, table_format) for kind, runs in sections.items())


def _numbers(cells: Sequence[Cell], sections: Mapping[Kind, Mapping[Place, tuple[Group, Record]]]) -> Iterator[Record]:
    """Yield a record for each cell that has runs, and each way in which these differ from the recipe."""
    for cell in cells:
        for (_, changed), runs in sections.items():
            if (cell.method, cell.pair) in runs:
                _, record = runs[cell.method, cell.pair]
                of_cell = {"method": cell.method, "pair": cell.pair, "changed": changed, "published": cell.published}
                yield of_cell | {"published_epoch": cell.published_epoch, "note": cell.note} | record


def _section(cells: Sequence[Cell], kind: Kind, runs: Mapping[Place, tuple[Group, Record]], table_format: str) -> str:
    """Format the runs on one data set that differ from their recipes in the same way."""
    escape = ESCAPES[table_format]
    published_numbers = {(cell.method, cell.pair): cell.published for cell in cells}
    accuracies: dict[Place, str] = {}
    costs: dict[Place, str] = {}
    peers: list[Line] = []
    marks: list[str] = []
    for (method, pair), (group, record) in runs.items():
        accuracies[method, pair] = _result(record, published_numbers[method, pair] if group.comparable else "")
        costs[method, pair] = ", ".join(filter(None, cost_cells(record).values()))
        if record["first_peer_mean"] is not None:
            peers.append({"method": method, "pair": pair, "mean": spread(record, "last")} | peer_cells(record))
        if group.marks:
            marks.append(f"{method}, {pair}: {'; '.join(group.marks)}")
    protocols = _protocol_lines(cells, {place: record for place, (_, record) in runs.items()})
    data, changed = kind
    blocks = [escape(data), escape(changed or UNCHANGED)]
    for caption, table in (
        ("", _lines(cells, accuracies)),
        (PROTOCOLS_CAPTION, without_empty(protocols)),
        (COSTS_CAPTION, _lines(cells, costs)),
        (PEERS_CAPTION, peers),
    ):
        if table:
            blocks += [*filter(None, [escape(caption)]), format_table(table, [], table_format).strip("\n")]
    return "\n\n".join(blocks + [escape(mark) for mark in marks])


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


def _lines(cells: Sequence[Cell], texts: Mapping[Place, str]) -> list[Line]:
    """Arrange texts by method and pair; methods without any are left out."""
    pairs = dict.fromkeys(cell.pair for cell in cells)
    table = []
    for method in dict.fromkeys(cell.method for cell in cells):
        row = {pair: texts.get((method, pair), "") for pair in pairs}
        if any(row.values()):
            table.append({"method": method} | row)
    return table


def _protocol_lines(cells: Sequence[Cell], facts: Mapping[Place, Mapping[str, object]]) -> list[Line]:
    """Return epochs, views, the epoch of published numbers, and notes, of each method that has ``facts`` of a pair."""
    table = []
    for method in dict.fromkeys(cell.method for cell in cells):
        of_method = [cell for cell in cells if cell.method == method and (method, cell.pair) in facts]
        measured = [facts[method, cell.pair] for cell in of_method]
        if of_method:
            line = {"method": method}
            line |= {name: _joined(fact[name] for fact in measured) for name in ("epochs", "views")}
            line["published_epoch"] = _joined(cell.published_epoch or "?" for cell in of_method if cell.published)
            line["note"] = _joined(cell.note for cell in of_method)
            table.append(line)
    return table


def _joined(values: Iterable[object]) -> str:
    """Return the different values that are not empty as text."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value))
