"""The table of many runs: mean and standard deviation over seeds, the paper's number beside it, and differences."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from hsakd_pl.errors import UsageError
from hsakd_pl.records.text_table import text_table
from hsakd_pl.report.groups import Group, test_of
from hsakd_pl.report.rows import seed_of

CONFIDENCE = 0.95
Record = dict[str, Any]
Line = dict[str, str]


def percents(group: Group, which: str) -> dict[Any, float]:
    """Accuracy in percent of each run that counts, by seed: of its ``last`` or ``best`` epoch, or of its ``test``."""
    found: dict[Any, float] = {}
    for row in group.rows:
        value = test_of(row) if which == "test" else row[f"{which}_val_acc"]
        if value is not None:
            found[seed_of(row)] = 100 * value
    return found


def paired(one: Mapping[Any, float], other: Mapping[Any, float]) -> Record:
    """Give the mean difference over common seeds, with its 95 % interval (Student's t) where there are two or more."""
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    seeds, middle = len(differences), mean(differences) if differences else None
    half = None
    if seeds > 1:
        half = student_t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * stdev(differences) / math.sqrt(seeds)
    bounds = (None, None) if middle is None or half is None else (middle - half, middle + half)
    return {"difference": middle, "difference_low": bounds[0], "difference_high": bounds[1], "common_seeds": seeds}


def records(groups: Sequence[Group], against: Group | None = None) -> list[Record]:
    """Make the table in numbers, accuracies in percent: a record a group, None where there is nothing."""
    made = []
    for group in groups:
        record: Record = {"run": group.name, "recipe": group.recipe, "protocol": _hash(group), "n": len(group.rows)}
        for which in ("last", "best", "test"):
            found = list(percents(group, which).values())
            record[f"{which}_mean"] = mean(found) if found else None
            record[f"{which}_std"] = stdev(found) if len(found) > 1 else None
        paper = float(group.paper.split()[0]) if group.paper else None
        to_paper = None if paper is None or record["last_mean"] is None else record["last_mean"] - paper
        record |= {"paper": paper, "to_paper": to_paper}
        for field in ("images_per_second", "seconds", "device_hours"):
            found = [row[field] for row in group.rows if row.get(field) is not None]
            record[field] = mean(found) if found else None
        if against is not None:
            last = percents(group, "last")
            record |= paired(last if group is not against else {}, percents(against, "last"))
        made.append(record | {"marks": "; ".join(group.marks)})
    return made


def lines(groups: Sequence[Group], against: Group | None = None) -> list[Line]:
    """Make the table as people read it, cells by column; columns that are empty throughout are left out."""
    table = all_lines(groups, against)
    used = [column for column in table[0] if any(line[column] for line in table)]
    return [{column: line[column] for column in used} for line in table]


def all_lines(groups: Sequence[Group], against: Group | None = None) -> list[Line]:
    """Make the table with all of its columns, empty ones too."""
    table = []
    for group, record in zip(groups, records(groups, against), strict=True):
        spreads = {column: spread(record, column.split()[0]) for column in ("last epoch", "best epoch", "test")}
        line = {"run": record["run"], "n": str(record["n"]), **spreads, "paper": group.paper}
        line["to paper"] = _number(record["to_paper"], "+.2f")
        line["images/s"] = _number(record["images_per_second"], ",.0f")
        line["seconds"] = _number(record["seconds"], ",.0f")
        if against is not None:
            line[f"to {against.name}"] = "" if group is against else _difference(record)
        table.append(line | {"marks": record["marks"]})
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def spread(record: Record, which: str) -> str:
    """Write mean and standard deviation over seeds of the ``last`` epoch, the ``best`` or the ``test``."""
    deviation = _number(record[f"{which}_std"], ".2f")
    return _number(record[f"{which}_mean"], ".2f") + (f" +- {deviation}" if deviation else "")


def _difference(record: Record) -> str:
    if record["difference"] is None:
        return "no common seed"
    low, high = record["difference_low"], record["difference_high"]
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"{record['difference']:+.2f}{interval}, n = {record['common_seeds']}"


def chosen(groups: Sequence[Group], name: str) -> Group:
    """The group that a user means by its name, parts of it, or its hash; UsageError where that is none or several."""
    exact = [group for group in groups if name in (group.name, _hash(group))]
    found = exact or [group for group in groups if all(part in group.name for part in name.split(", "))]
    if len(found) != 1:
        known = "; ".join(group.name for group in groups)
        raise UsageError(f"against: {name!r} means {len(found)} rows: name one of {known}")
    return found[0]


def _hash(group: Group) -> str | None:
    return next((row["protocol"].get("hash") for row in (*group.rows, *group.others) if row.get("protocol")), None)


def as_text(groups: Sequence[Group], form: str, against: Group | None = None) -> str:
    """Write the table of groups in one of :data:`TABLE_FORMATS`: as wide as it is, whatever the terminal."""
    return written(lines(groups, against), records(groups, against), form)


def written(table: Sequence[Line], numbers: Sequence[Record], form: str) -> str:
    """Write a table in one of :data:`TABLE_FORMATS`, what csv and json hold being its ``numbers``."""
    if form in ("csv", "json"):
        return {"csv": _csv, "json": _json}[form](numbers)
    return {"table": text_table, "md": _markdown, "latex": _latex}[form](table)


def _markdown(table: Sequence[Line]) -> str:
    rows = [list(table[0]), ["---"] * len(table[0]), *(list(line.values()) for line in table)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _latex(table: Sequence[Line]) -> str:
    """For the package booktabs."""
    escaped = str.maketrans({**{sign: f"\\{sign}" for sign in "&%$#_{}"}, "^": r"\^{}", "~": r"\~{}", "\\": "/"})
    rows = [list(table[0]), *(list(line.values()) for line in table)]
    cells = [[cell.translate(escaped).replace("+-", r"$\pm$") for cell in row] for row in rows]
    head, *body = [" & ".join(row) + r" \\" for row in cells]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _csv(table: Sequence[Record]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().rstrip("\n")


def _json(table: Sequence[Record]) -> str:
    return json.dumps(list(table), indent=1)
