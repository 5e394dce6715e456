"""Draw the curves of stored runs: python scripts/curves.py results/small docs/assets/curves-small.svg.

A line per row of ``hsakd report``: the mean over its seeds in a band of their range, with the method of the bench
and the accuracy of the last epoch at its end. The drawing has a transparent background and colours for light and dark
pages, and the same runs result in the same bytes.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader

import hsakd_pl.report
from hsakd_pl.commands.bench.cells import select_cells
from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.recipes import BENCH_TABLES
from hsakd_pl.records.curves import over_seeds
from hsakd_pl.records.figures import PALETTE
from hsakd_pl.report.charts import DASHES, Chart, Style, round_numbers
from hsakd_pl.report.groups import Group, by_data, groups, short_names
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import percents

TITLES = {
    "train/loss_ce": "cross-entropy in training, nats",
    "train/loss": "training loss, the sum of all terms",
    "val/loss": "validation loss, nats",
    "val/acc": "validation accuracy, %",
}
COLOURS = PALETTE[:6]  # without black, which is invisible on dark pages
STYLES = [Style(colour, dash, "") for dash in DASHES for colour in COLOURS]
INK = "#6e7781"  # 4.6 : 1 against white, and 4.1 : 1 against the dark pages of GitHub
LABEL_ROOM = 170  # units to the right of the chart
LABEL_HEIGHT = 15

TEMPLATE = """{% from "charts.html" import axes %}
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ chart.width + room }} {{ chart.height }}" role="img">
<title>{{ title }} by epoch; {{ data }}</title>
<style>text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: {{ ink }} }
.axes line { stroke: {{ ink }}; stroke-opacity: .25 }</style>
{{ axes(chart, "epoch", title) }}
{% for line in lines %}
{% if line.band %}<polygon points="{{ line.band }}" fill="{{ line.style.colour }}" opacity=".2"/>{% endif %}
<polyline points="{{ line.points }}" fill="none" stroke="{{ line.style.colour }}" stroke-width="2"
 stroke-dasharray="{{ line.style.dash }}"/>
<path d="M{{ chart.right + 8 }} {{ line.y }}h22" stroke="{{ line.style.colour }}" stroke-width="2"
 stroke-dasharray="{{ line.style.dash }}"/>
<text x="{{ chart.right + 36 }}" y="{{ line.y + 4 }}">{{ line.label }}</text>
{% endfor %}
</svg>
"""


class Curve(NamedTuple):
    """Hold the points of a row: epochs with the values of its seeds, and what stands at their end."""

    label: str
    points: list[tuple[float, list[float]]]


def method_names() -> dict[str, str]:
    """Return the methods of all bench tables by their recipes."""
    return {cell.recipe: cell.method for name in BENCH_TABLES for cell in select_cells([name], [], [])[0]}


def curve(group: Group, name: str, metric: str) -> Curve:
    """Return the curve of a metric, labelled with the mean accuracy after the last epoch."""
    accuracies = percents(group, "last").values()
    label = f"{name}, {mean(accuracies):.2f} %" if accuracies else name
    return Curve(label, over_seeds([row["history"] for row in group.rows], metric))


def drawing(folder: Path, metric: str, chosen: list[str]) -> str:
    """Return the SVG of a metric of the runs below a folder; ``chosen`` are methods or names of rows, all if empty."""
    (data, members), *others = by_data(groups(collect(folder))).items()
    if others:
        raise UsageError(f"{folder} has runs on several data sets: draw each from a folder of its own")
    methods = method_names()
    named = {methods.get(group.base, name): group for group, name in zip(members, short_names(members), strict=True)}
    for name in chosen:
        if name not in named:
            raise UsageError(f"{name} is not one of {', '.join(named)}")
    curves = [curve(named[name], name, metric) for name in chosen or named]
    curves = [each for each in curves if each.points]
    if not curves:
        raise UsageError(f"no run below {folder} has {metric} in its metrics.csv")
    return render(curves, TITLES[metric], data)


def render(curves: list[Curve], title: str, data: str) -> str:
    """Return the drawing of at least one curve."""
    epochs = [epoch for each in curves for epoch, _ in each.points]
    values = [value for each in curves for _, seeds in each.points for value in seeds]
    chart = Chart(round_numbers(0, max(epochs), 1), round_numbers(min(values), max(values)))
    lines = []
    ends = [chart.y(mean(each.points[-1][1])) for each in curves]
    for each, style, y in zip(curves, STYLES, spread(ends, LABEL_HEIGHT), strict=False):
        lowest = [(epoch, min(seeds)) for epoch, seeds in each.points]
        highest = [(epoch, max(seeds)) for epoch, seeds in reversed(each.points)]
        points = chart.line((epoch, mean(seeds)) for epoch, seeds in each.points)
        band = chart.line(lowest + highest) if lowest != highest[::-1] else ""
        lines.append({"label": each.label, "style": style, "points": points, "band": band, "y": y})
    templates = Environment(
        loader=FileSystemLoader(Path(hsakd_pl.report.__file__).parent), autoescape=True, trim_blocks=True
    )
    content = {"chart": chart, "lines": lines, "title": title, "data": data, "room": LABEL_ROOM, "ink": INK}
    return templates.from_string(TEMPLATE).render(content).lstrip() + "\n"


def spread(positions: list[float], distance: float) -> list[float]:
    """Move positions apart, in their order, to a distance that is at least the given one.

    Examples:
        >>> spread([50, 10, 52], 10)
        [46.0, 10.0, 56.0]
    """
    blocks: list[list[int]] = []
    centres: list[float] = []
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        blocks.append([index])
        centres.append(positions[index])
        while len(blocks) > 1 and centres[-1] - centres[-2] < distance * (len(blocks[-1]) + len(blocks[-2])) / 2:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
            centres[-2:] = [mean(positions[member] for member in blocks[-1])]
    moved = [0.0] * len(positions)
    for block, centre in zip(blocks, centres, strict=True):
        for place, index in enumerate(block):
            moved[index] = round(centre + distance * (place - (len(block) - 1) / 2), 1)
    return moved


def main() -> None:
    """Draw the curves into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with runs, such as results/small")
    parser.add_argument("svg", type=Path, help="file to write")
    parser.add_argument("--metric", choices=TITLES, default="train/loss_ce", help="column of metrics.csv")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="methods or rows (default: all)")
    options = parser.parse_args()
    text = drawing(options.folder, options.metric, options.rows)
    with replacing(options.svg) as file:
        file.write(text)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(str(error)) from error
