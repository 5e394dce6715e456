"""Runs as one HTML file that needs no network: the table, curves, and the strengths and weaknesses of each network."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader

from hsakd_pl.files import replacing
from hsakd_pl.records.curves import over_seeds
from hsakd_pl.records.figures import PALETTE
from hsakd_pl.records.formats import Row, ensemble_title
from hsakd_pl.records.measured import coverage, reasons_against_test_of
from hsakd_pl.report.charts import STYLES, Chart, Style, round_numbers
from hsakd_pl.report.findings import findings, heads_of
from hsakd_pl.report.groups import Group, by_data, shared_changes, short_names
from hsakd_pl.report.rows import seed_of
from hsakd_pl.report.table import PEER_COLUMNS, all_lines

# Metrics with a chart of their own: title with the unit, and what to know about it
CURVES = {
    "val/acc": ("Validation accuracy, %", ""),
    "val/loss": ("Validation loss, nats", ""),
    "train/loss_ce": ("Cross-entropy in training, nats", "Where several peers train together, their sum."),
    "train/loss": ("Training loss", "The sum of all terms with their weights: compare it within a method only."),
}
# Columns of the table, which are left out if they are empty, and their units
COLUMNS = {
    "n": "",
    "last epoch": "%",
    "best epoch": "%",
    "test": "%",
    **dict.fromkeys(PEER_COLUMNS, "%"),
    "paper": "%",
    "to paper": "points",
    "images/s": "",
    "seconds": "",
}
# Entries of a protocol that are shown elsewhere, or differ wherever anything does
NOT_FACTS = ("data", "options", "hash", "found")
UNSET = "\u2013"  # of an option, in a table: a dash
MARKED_EPOCHS = 20  # up to which each epoch has a mark on a curve
Points = list[tuple[float, list[float]]]
Setting = tuple[str, str, bool]  # option, value, and whether it differs among the experiments


def write_page(groups: Sequence[Group], path: str | Path) -> None:
    """Write the page of these groups, in this order, with a table and curves for each data set."""
    data_sets: list[dict[str, Any]] = []
    drawn = 0
    for label, members in by_data(groups).items():
        data_sets.append(_data_set(label, members, drawn))
        drawn += len(members)
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = templates.get_template("page.html").render(
        ensemble_title=ensemble_title,
        palette=PALETTE,
        units=COLUMNS,
        data_sets=data_sets,
        experiments=drawn,
        runs=sum(len(group.rows) for group in groups),
    )
    with replacing(path) as file:
        file.write(page)


def _data_set(label: str, groups: Sequence[Group], first_number: int) -> dict[str, Any]:
    """Return the table and the curves of the groups on one data set, which are numbered from ``first_number`` on."""
    lines = all_lines(groups)
    columns = [column for column in COLUMNS if any(line[column] for line in lines)]
    contents = [_group(group) for group in groups]
    for number, content in enumerate(contents, first_number):
        content |= {"number": number, "style": STYLES[number % len(STYLES)]}
    further: dict[str, Sequence[Any]] = {
        "short_name": short_names(groups),
        "cells": [[line[column].replace("+-", "±") for column in columns] for line in lines],
        "facts": settings([_facts(group) for group in groups]),
        "options": settings([_options(group) for group in groups]),
    }
    for name, values in further.items():
        for content, value in zip(contents, values, strict=True):
            content[name] = value
    shared = shared_changes(groups)
    charts = list(_charts(contents))
    return {"label": label, "shared": shared, "columns": columns, "groups": contents, "charts": charts}


def settings(contents: Sequence[Mapping[str, Any]]) -> list[list[Setting]]:
    """Return the options of each experiment that any of them has set, marked where not all have the same value.

    Examples:
        >>> settings([{"lr": 0.1, "views": 4, "warmup": None}, {"lr": 0.1, "views": 1, "warmup": None}])
        [[('lr', '0.1', False), ('views', '4', True)], [('lr', '0.1', False), ('views', '1', True)]]
    """
    texts = [{option: _text(value) for option, value in content.items()} for content in contents]
    names = dict.fromkeys(option for content in texts for option, text in content.items() if text != UNSET)
    tables = []
    for content in texts:
        # an experiment of an early version, of which nothing is known, has no settings
        options = names if content else ()
        values = [(option, content.get(option, UNSET)) for option in options]
        tables.append([(option, value, _differs(texts, option, value)) for option, value in values])
    return tables


def _differs(texts: Sequence[Mapping[str, str]], option: str, value: str) -> bool:
    return any(content.get(option, UNSET) != value for content in texts if content)


def _text(value: Any) -> str:
    return UNSET if value is None or value == {} else str(value)


def _protocol(group: Group) -> dict[str, Any]:
    return next((row["protocol"] for row in group.all_rows if row.get("protocol")), {})


def _options(group: Group) -> dict[str, Any]:
    """Return all options, after what identifies the data."""
    protocol = _protocol(group)
    return dict(_flat({"data": protocol.get("data") or {}})) | (protocol.get("options") or {})


def _facts(group: Group) -> dict[str, Any]:
    """Return what a protocol says besides its options, with one name per value."""
    facts = {}
    for name, value in _flat({name: value for name, value in _protocol(group).items() if name not in NOT_FACTS}):
        if name.endswith("sha256") and isinstance(value, str):
            value = value[:12]
        if name == "teacher acc":
            facts["teacher accuracy, %"] = value if value is None else f"{100 * value:.2f}"
        else:
            facts[name] = value
    return facts


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested mappings with the words of their names."""
    for name, value in content.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{words}, ")
        else:
            yield words, value


def _group(group: Group) -> dict[str, Any]:
    return group._asdict() | {
        "name": group.name,
        "hash": _protocol(group).get("hash"),
        "runs": [_run(group.name, row) for row in group.rows],
    }


def _run(name: str, row: Row) -> dict[str, Any]:
    test = ["hsakd", "test", "--config", str(Path(row["folder"], "config.yaml")), "--ckpt_path", "last"]
    title = f"{name}, seed {seed_of(row)}"
    content = {"row": row, "title": title, "command": shlex.join(test), "heads": heads_of(row.get("test") or {})}
    content |= {"reasons": reasons_against_test_of(row), "coverage": coverage(row.get("test") or {})}
    if row.get("details"):
        content |= findings(row["details"])
    return content


def _charts(groups: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Draw the metrics of the groups on one data set; all charts have the same epochs."""
    curves_by_metric: dict[str, list[tuple[Mapping[str, Any], Points]]] = {}
    for metric in CURVES:
        points = [(group, over_seeds([row["history"] for row in group["rows"]], metric)) for group in groups]
        curves_by_metric[metric] = [(group, curve) for group, curve in points if curve]
    epochs = [epoch for curves in curves_by_metric.values() for _, curve in curves for epoch, _ in curve]
    if not epochs:
        return
    epoch_ticks = round_numbers(0, max(epochs), 1)
    for metric, curves in curves_by_metric.items():
        if not curves:
            continue
        values = [value for _, curve in curves for _, values in curve for value in values]
        chart = Chart(epoch_ticks, round_numbers(min(values), max(values)))
        title, note = CURVES[metric]
        lines = [_line(chart, group, curve, metric) for group, curve in curves]
        yield {"title": title, "note": note, "chart": chart, "lines": lines}


def _line(chart: Chart, group: Mapping[str, Any], points: Points, metric: str) -> dict[str, Any]:
    """Draw the mean of a group's runs in a band from the lowest to the highest, and a thin line for each run.

    The mean covers the epochs for which all runs have a value, so that it does not jump where one of them ends.
    """
    of_runs = {seed_of(row): over_seeds([row["history"]], metric) for row in group["rows"]}
    drawn = {seed: own_points for seed, own_points in of_runs.items() if own_points}
    common = [(epoch, values) for epoch, values in points if len(values) >= len(drawn)] or points

    def over_epochs(statistic: Callable[[list[float]], float]) -> list[tuple[float, float]]:
        return [(epoch, statistic(values)) for epoch, values in common]

    means = over_epochs(mean)
    style: Style = group["style"]
    has_seeds = len(drawn) > 1
    seeds = {seed: [(epoch, values[0]) for epoch, values in own_points] for seed, own_points in drawn.items()}
    return {
        "number": group["number"],
        "style": style,
        "name": group["short_name"],
        "line": chart.line(means),
        "band": chart.line([*over_epochs(min), *reversed(over_epochs(max))]) if has_seeds else "",
        "seeds": {seed: chart.line(line) for seed, line in seeds.items()} if has_seeds else {},
        "marks": chart.marks(means if len(means) <= MARKED_EPOCHS else means[-1:], style.shape),
        "last_epoch": means[-1][0],
        "last": means[-1][1],
    }
