"""The table of many runs: mean and standard deviation over seeds, published numbers, and differences."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files.escaping import for_latex, for_markdown, for_spreadsheet, for_terminal
from hsakd_pl.records.formats import Row
from hsakd_pl.records.measured import ensemble_accuracy, last_accuracy, peer_accuracies, test_accuracy
from hsakd_pl.records.text_table import text_table
from hsakd_pl.report.groups import (
    Group,
    by_data,
    data_label,
    evaluated_on,
    shared_changes,
    short_names,
    tested_on_one_split,
)
from hsakd_pl.report.rows import seed_of

CONFIDENCE = 0.95
# The accuracy of a run in each column, a fraction or None
ACCURACIES: dict[str, Callable[[Row], float | None]] = {
    "last": last_accuracy,
    "best": lambda row: row["best_val_acc"],
    "test": test_accuracy,
    "first_peer": lambda row: next(iter(peer_accuracies(row)), None),
    "best_peer": lambda row: max(peer_accuracies(row), default=None),
    "ensemble": ensemble_accuracy,
}
# Columns of runs of several peers, whose mean is the result, and the accuracy in each
PEER_COLUMNS = {"first peer": "first_peer", "best peer": "best_peer", "ensemble": "ensemble"}
SPEED_COLUMNS = ("images/s", "seconds")
PARAMETER_COLUMNS = {"M trained": "parameters_trained", "M deployed": "parameters_deployed"}
COSTS = ("parameters", "multiply_adds")
COSTS_CAPTION = "Costs, trained / deployed: M parameters, M multiply-adds of a forward pass (in training of all views)"
PEERS_CAPTION = "Peers: accuracy after the last epoch, of the best one by the same images; the ensemble averages logits"
MILLION = 1e6
# Formats that hold all records as numbers, and what escapes a line of text in each of the others
NUMBERS = ("csv", "json")
ESCAPES: dict[str, Callable[[str], str]] = {"table": for_terminal, "md": for_markdown, "latex": for_latex}
Record = dict[str, Any]
Line = dict[str, str]


def percents(group: Group, which: str) -> dict[str, float]:
    """Return the accuracy in percent by seed in a column of :data:`ACCURACIES`."""
    if which == "test" and not tested_on_one_split(group.rows):
        return {}
    accuracy_of = ACCURACIES[which]
    accuracies = {seed_of(row): accuracy_of(row) for row in group.rows}
    return {seed: 100 * accuracy for seed, accuracy in accuracies.items() if accuracy is not None}


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Record:
    """Return the mean difference over common seeds, and for two or more its 95 % interval (Student's t)."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    seeds = len(differences)
    record: Record = {
        "difference": mean(differences) if differences else None,
        "difference_low": None,
        "difference_high": None,
        "common_seeds": seeds,
    }
    if seeds > 1:
        from scipy.stats import t as student_t  # takes a second, and most tables do not need it

        half_width = student_t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * stdev(differences) / math.sqrt(seeds)
        record["difference_low"] = record["difference"] - half_width
        record["difference_high"] = record["difference"] + half_width
    return record


def records(groups: Sequence[Group], against: Group | None = None) -> list[Record]:
    """Return the table as numbers, one record per group; accuracies are in percent, missing values None."""
    return [_record(group, against) for group in groups]


def _record(group: Group, against: Group | None) -> Record:
    record: Record = {
        "run": group.name,
        "data": data_label(group),
        "recipe": group.recipe,
        "protocol": _hash(group),
        "n": len(group.rows),
    }
    for which in ACCURACIES:
        accuracies = list(percents(group, which).values())
        record[f"{which}_mean"] = mean(accuracies) if accuracies else None
        record[f"{which}_std"] = stdev(accuracies) if len(accuracies) > 1 else None
    paper = float(group.paper.split()[0]) if group.paper else None
    last = record["last_mean"]
    record["paper"] = paper
    record["to_paper"] = None if paper is None or last is None else last - paper
    for name in ("images_per_second", "seconds", "device_hours"):
        values = [row[name] for row in group.rows if row.get(name) is not None]
        record[name] = mean(values) if values else None
    record |= _protocol(group) | _costs(group)
    if against is not None:
        is_comparable = group is not against and evaluated_on(group) == evaluated_on(against)
        accuracies_by_seed = percents(group, "last") if is_comparable else {}
        record |= paired_difference(accuracies_by_seed, percents(against, "last"))
    record["marks"] = "; ".join(group.marks)
    return record


def _protocol(group: Group) -> Record:
    """Return the epochs of the runs, as planned if they have a plan, and the views of an image in a training step."""
    protocols = [(row, row.get("protocol") or {}) for row in (*group.rows, *group.others)]
    epochs = [protocol.get("epochs") or row.get("epochs") for row, protocol in protocols]
    views = [protocol.get("views") for _, protocol in protocols]
    return {"epochs": next(filter(None, epochs), None), "views": next(filter(None, views), None)}


def _costs(group: Group) -> Record:
    """Return parameters and multiply-adds: those trained, and a list of those of the different deployed networks."""
    record: Record = {}
    for cost in COSTS:
        counts: Record = next((row[cost] for row in (*group.rows, *group.others) if row.get(cost)), {})
        record[f"{cost}_trained"] = counts.get("trained")
        record[f"{cost}_deployed"] = list(dict.fromkeys(filter(None, counts.get("deployed", ())))) or None
    return record


def millions(counts: int | Sequence[int] | None, digits: int = 2) -> str:
    """Format counts in millions, several as ``2.26 or 0.57``, and None as ``""``.

    Examples:
        >>> millions([2_255_156, 569_780])
        '2.26 or 0.57'
    """
    several = [counts] if isinstance(counts, int) else counts or []
    return " or ".join(f"{count / MILLION:.{digits}f}" for count in several)


def cost_cells(record: Record) -> Line:
    """Return parameters and multiply-adds as ``trained / deployed``, or ``""`` where they are not recorded."""
    cells = {}
    for cost, title, digits in (("parameters", "M parameters", 2), ("multiply_adds", "M multiply-adds", 1)):
        trained = millions(record[f"{cost}_trained"], digits)
        deployed = millions(record[f"{cost}_deployed"], digits)
        cells[title] = f"{trained} / {deployed}" if trained and deployed else trained
    return cells


def peer_cells(record: Record) -> Line:
    """Return the cells of runs of several peers by column; they are empty for one network."""
    cells = {column: spread(record, which) for column, which in PEER_COLUMNS.items()}
    has_peers = record["first_peer_mean"] is not None
    for column, name in PARAMETER_COLUMNS.items():
        cells[column] = millions(record[name]) if has_peers else ""
    return cells


def lines(groups: Sequence[Group], against: Group | None = None) -> list[Line]:
    """Return the table as text, cells by column, without the columns that are empty throughout."""
    return without_empty(all_lines(groups, against))


def all_lines(groups: Sequence[Group], against: Group | None = None) -> list[Line]:
    """Return the table as text, with all of its columns."""
    numbers = records(groups, against)
    return [_line(group, record, against) for group, record in zip(groups, numbers, strict=True)]


def _line(group: Group, record: Record, against: Group | None) -> Line:
    line = {
        "run": record["run"],
        "n": str(record["n"]),
        "last epoch": spread(record, "last"),
        "best epoch": spread(record, "best"),
        "test": spread(record, "test"),
        **peer_cells(record),
        "paper": group.paper,
        "to paper": _number(record["to_paper"], "+.2f"),
        "images/s": _number(record["images_per_second"], ",.0f"),
        "seconds": _number(record["seconds"], ",.0f"),
    }
    if against is not None:
        line[f"to {against.name}"] = "" if group is against else _difference(record)
    line["marks"] = record["marks"]
    return line


def _number(value: float | None, number_format: str) -> str:
    return "" if value is None else format(value, number_format)


def spread(record: Record, which: str) -> str:
    """Format mean and standard deviation over seeds of the ``last`` or ``best`` epoch, or of the ``test``."""
    average = _number(record[f"{which}_mean"], ".2f")
    deviation = _number(record[f"{which}_std"], ".2f")
    return f"{average} +- {deviation}" if deviation else average


def _difference(record: Record) -> str:
    if record["difference"] is None:
        return "no common seed"
    difference = f"{record['difference']:+.2f}"
    if record["difference_low"] is not None:
        difference += f" [{record['difference_low']:+.2f}, {record['difference_high']:+.2f}]"
    return f"{difference}, n = {record['common_seeds']}"


def find_group(groups: Sequence[Group], name: str) -> Group:
    """Return the group that a user means by its name, parts of it, or its hash.

    Raises UsageError if that is none or several.
    """
    matches = [group for group in groups if name in (group.name, _hash(group))]
    if not matches:
        matches = [group for group in groups if all(part in group.name for part in name.split(", "))]
    if len(matches) != 1:
        names = "; ".join(group.name for group in groups)
        raise UsageError(f"against: {name!r} matches {len(matches)} rows; name one of {names}")
    return matches[0]


def _hash(group: Group) -> str | None:
    for row in (*group.rows, *group.others):
        if row.get("protocol"):
            return row["protocol"].get("hash")
    return None


def as_text(groups: Sequence[Group], table_format: str, against: Group | None = None, width: int | None = None) -> str:
    """Format the table of groups in one of :data:`hsakd_pl.report.TABLE_FORMATS`.

    Each data set has a table, and a second one with epochs, views and costs; in csv and json, they are fields of the
    same records.

    Args:
        groups: rows of the tables.
        table_format: one of :data:`hsakd_pl.report.TABLE_FORMATS`.
        against: row with which those on the same data are compared.
        width: columns of the terminal into which text is broken; None for the full width.
    """
    if table_format in NUMBERS:
        return format_table([], records(groups, against), table_format)
    sections = [_section(label, members, table_format, against, width) for label, members in by_data(groups).items()]
    return "\n\n".join(sections)


def _section(label: str, groups: Sequence[Group], table_format: str, against: Group | None, width: int | None) -> str:
    """Format the groups on one data set: its label, what all of them change, results, peers, and costs."""

    def caption(text: str) -> str:
        escaped = ESCAPES[table_format](text)
        return escaped if width is None else fill(escaped, width, break_on_hyphens=False)

    if against is not None and evaluated_on(groups[0]) != evaluated_on(against):
        against = None
    results: list[Line] = []
    costs: list[Line] = []
    peers: list[Line] = []
    for name, group, record in zip(short_names(groups), groups, records(groups, against), strict=True):
        line = _line(group, record, against)
        of_peers = {column: line.pop(column) for column in peer_cells(record)}
        if any(of_peers.values()):
            peers.append({"run": name, "mean": spread(record, "last")} | of_peers)
        speed = {column: line.pop(column) for column in SPEED_COLUMNS}
        costs.append({"run": name} | protocol_cells(record) | speed)
        results.append(line | {"run": name})
    blocks = [caption(_caption(label, groups)), _table(results, table_format, width)]
    if peers:
        blocks += [caption(PEERS_CAPTION), _table(peers, table_format, width)]
    if len(without_empty(costs)[0]) > 1:
        blocks += [caption(COSTS_CAPTION), _table(costs, table_format, width)]
    return "\n\n".join(blocks)


def _table(table: Sequence[Line], table_format: str, width: int | None) -> str:
    return format_table(without_empty(table), [], table_format, width).strip("\n")


def _caption(label: str, groups: Sequence[Group]) -> str:
    """Return the label of the data, the unit, and what all groups change."""
    shared = shared_changes(groups)
    return "; ".join([label, "accuracies in %", *([f"all rows: {', '.join(shared)}"] if shared else [])])


def protocol_cells(record: Record) -> Line:
    """Return the cells of epochs, views and costs by column."""
    return {"epochs": str(record["epochs"] or ""), "views": str(record["views"] or ""), **cost_cells(record)}


def without_empty(table: Sequence[Line]) -> list[Line]:
    """Return a table without the columns that are empty throughout."""
    used = [column for column in table[0] if any(line[column] for line in table)]
    return [{column: line[column] for column in used} for line in table]


def format_table(table: Sequence[Line], numbers: Sequence[Record], table_format: str, width: int | None = None) -> str:
    """Format a table in a format of ``TABLE_FORMATS``; csv and json contain ``numbers``, the others the text."""
    if table_format == "csv":
        return _csv(numbers)
    if table_format == "json":
        return json.dumps(list(numbers), indent=1)
    if table_format == "md":
        return _markdown(table)
    if table_format == "latex":
        return _latex(table)
    return text_table(table, width)


def _rows_of_cells(table: Sequence[Line]) -> list[list[str]]:
    """Return the header and the cells."""
    return [list(table[0]), *(list(line.values()) for line in table)]


def _markdown(table: Sequence[Line]) -> str:
    header, *body = _rows_of_cells(table)
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(map(for_markdown, row)) + " |" for row in rows)


def _latex(table: Sequence[Line]) -> str:
    """Format a table for the package booktabs."""
    rows = []
    for cells in _rows_of_cells(table):
        escaped = [for_latex(cell).replace("+-", r"$\pm$") for cell in cells]
        rows.append(" & ".join(escaped) + r" \\")
    header, *body = rows
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _csv(numbers: Sequence[Record]) -> str:
    if not numbers:
        return ""
    text = StringIO()
    writer = csv.DictWriter(text, list(numbers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in record.items()} for record in numbers)
    return text.getvalue().rstrip("\n")


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return " or ".join(map(str, value))
    return for_spreadsheet(value) if isinstance(value, str) else value
