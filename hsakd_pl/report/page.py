"""Shows runs as one HTML file that needs no network: the table, curves, and what each network does well and badly."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.records.curves import over_seeds
from hsakd_pl.records.ensembles import ensemble_title
from hsakd_pl.records.formats import Row
from hsakd_pl.report.charts import STYLES, Chart, Style, round_numbers
from hsakd_pl.report.findings import findings, heads_of
from hsakd_pl.report.groups import Group
from hsakd_pl.report.table import Line, all_lines

CURVES = {"val/acc": "Accuracy in validation, %", "val/loss": "Loss in validation", "train/loss": "Loss in training"}
COLUMNS = ("n", "last epoch", "best epoch", "test", "paper", "to paper", "images/s", "seconds")
MARKED = 20  # epochs up to which each has a mark of its own on a curve


def write_page(groups: Sequence[Group], path: str | Path) -> None:
    """Write the page of these groups, in this order, to ``path``.

    Raises UsageError naming a ``test_details.json`` that is not what ``test`` writes.
    """
    styled = [(STYLES[index % len(STYLES)], group) for index, group in enumerate(groups)]
    table = all_lines(groups)
    files = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = files.get_template("page.html").render(
        ensemble_title=ensemble_title,
        columns=[*COLUMNS],
        groups=[{"style": style, **_group(group, line)} for (style, group), line in zip(styled, table, strict=True)],
        charts=[chart for name, title in CURVES.items() if (chart := _curves(styled, name, title))],
        runs=sum(len(group.rows) for group in groups),
    )
    with replacing(path) as file:
        file.write(page)


def _group(group: Group, line: Line) -> dict[str, Any]:
    return {
        **group._asdict(),
        "cells": [line[column].replace("+-", "±") for column in COLUMNS],
        "protocol": next((row["protocol"] for row in group.rows if row.get("protocol")), {}),
        "runs": [_run(row) for row in group.rows],
    }


def _run(row: Row) -> dict[str, Any]:
    test = ["hsakd", "test", "--config", str(Path(row["folder"], "config.yaml")), "--ckpt_path", "last"]
    shown = {"row": row, "command": shlex.join(test), "heads": heads_of(row.get("test") or {})}
    try:
        return shown | (findings(row["details"]) if row.get("details") else {})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        path = Path(row["folder"], "test_details.json")
        raise UsageError(f"{path} is not what test writes: remove it, or run {shlex.join(test)}") from error


def _curves(groups: Sequence[tuple[Style, Group]], name: str, title: str) -> dict[str, Any] | None:
    """Lay out a line a group, the mean over its runs, in a band from the lowest of them to the highest."""
    lines = []
    for style, group in groups:
        if found := over_seeds([row["history"] for row in group.rows], name):
            lines.append((style, group.name, found))
    if not lines:
        return None
    epochs = [epoch for *_, points in lines for epoch, _ in points]
    values = [value for *_, points in lines for _, seeds in points for value in seeds]
    chart = Chart(round_numbers(min(epochs), max(epochs), 1), round_numbers(min(values), max(values)))
    return {"title": title, "chart": chart, "lines": [_line(chart, *line) for line in lines]}


def _line(chart: Chart, style: Style, name: str, points: list[tuple[float, list[float]]]) -> dict[str, Any]:
    means, lowest, highest = ([(epoch, of(seeds)) for epoch, seeds in points] for of in (mean, min, max))
    return {
        "style": style,
        "name": name,
        "line": chart.line(means),
        "band": chart.line([*lowest, *reversed(highest)]),
        "marks": chart.marks(means if len(means) <= MARKED else means[-1:], style.shape),
        "last": means[-1][1],
    }
