"""Runs as one HTML file that needs no network: the table, curves, and the strengths and weaknesses of each network."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader

from hsakd_pl.files import replacing
from hsakd_pl.records.curves import over_seeds
from hsakd_pl.records.formats import Row, ensemble_title
from hsakd_pl.records.measured import coverage, reasons_against_test_of
from hsakd_pl.report.charts import STYLES, Chart, Style, round_numbers
from hsakd_pl.report.findings import findings, heads_of
from hsakd_pl.report.groups import Group
from hsakd_pl.report.table import Line, all_lines

CURVES = {"val/acc": "Validation accuracy, %", "val/loss": "Validation loss", "train/loss": "Training loss"}
COLUMNS = ("n", "last epoch", "best epoch", "test", "paper", "to paper", "images/s", "seconds")
MARKED_EPOCHS = 20  # up to which each epoch has a mark on a curve
Points = list[tuple[float, list[float]]]


def write_page(groups: Sequence[Group], path: str | Path) -> None:
    """Write the page of these groups, in this order."""
    styled = [(STYLES[index % len(STYLES)], group) for index, group in enumerate(groups)]
    group_contents = []
    for (style, group), line in zip(styled, all_lines(groups), strict=True):
        group_contents.append({"style": style} | _group(group, line))
    charts = [_curves(styled, name, title) for name, title in CURVES.items()]
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = templates.get_template("page.html").render(
        ensemble_title=ensemble_title,
        columns=list(COLUMNS),
        groups=group_contents,
        charts=[chart for chart in charts if chart is not None],
        runs=sum(len(group.rows) for group in groups),
    )
    with replacing(path) as file:
        file.write(page)


def _group(group: Group, line: Line) -> dict[str, Any]:
    return group._asdict() | {
        "cells": [line[column].replace("+-", "±") for column in COLUMNS],
        "protocol": next((row["protocol"] for row in group.rows if row.get("protocol")), {}),
        "runs": [_run(row) for row in group.rows],
    }


def _run(row: Row) -> dict[str, Any]:
    test = ["hsakd", "test", "--config", str(Path(row["folder"], "config.yaml")), "--ckpt_path", "last"]
    content = {"row": row, "command": shlex.join(test), "heads": heads_of(row.get("test") or {})}
    content |= {"reasons": reasons_against_test_of(row), "coverage": coverage(row.get("test") or {})}
    if row.get("details"):
        content |= findings(row["details"])
    return content


def _curves(groups: Sequence[tuple[Style, Group]], metric: str, title: str) -> dict[str, Any] | None:
    """Draw one line per group: the mean over its runs, in a band from the lowest of them to the highest."""
    lines: list[tuple[Style, str, Points]] = []
    for style, group in groups:
        points = over_seeds([row["history"] for row in group.rows], metric)
        if points:
            lines.append((style, group.name, points))
    if not lines:
        return None
    epochs = [epoch for *_, points in lines for epoch, _ in points]
    values = [value for *_, points in lines for _, seeds in points for value in seeds]
    chart = Chart(round_numbers(min(epochs), max(epochs), 1), round_numbers(min(values), max(values)))
    return {"title": title, "chart": chart, "lines": [_line(chart, *line) for line in lines]}


def _line(chart: Chart, style: Style, name: str, points: Points) -> dict[str, Any]:
    def over_epochs(statistic: Callable[[list[float]], float]) -> list[tuple[float, float]]:
        return [(epoch, statistic(values)) for epoch, values in points]

    means = over_epochs(mean)
    band = [*over_epochs(min), *reversed(over_epochs(max))]
    return {
        "style": style,
        "name": name,
        "line": chart.line(means),
        "band": chart.line(band),
        "marks": chart.marks(means if len(means) <= MARKED_EPOCHS else means[-1:], style.shape),
        "last": means[-1][1],
    }
