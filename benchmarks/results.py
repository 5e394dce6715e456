"""The stored measurements, one file per device, and the tables of the documents that are rendered from them."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import COSTS
from benchmarks.trees import CHECKOUT
from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text, replacing
from hsakd_pl.files.schema import parse_json

RESULTS = Path(__file__).parent / "results"
MARKS = ("<!-- measurements: python -m benchmarks render -->", "<!-- end of measurements -->")
COST_MARKS = ("<!-- costs: python -m benchmarks render -->", "<!-- end of costs -->")
NAMES = {"plain": "plain PyTorch", "step": "bare loop", "fit": "`hsakd fit`"}
Numbers = dict[str, Any]  # of a variant
Row = dict[str, Numbers]  # by variant or method, and "environment"
Marks = tuple[str, str]  # lines between which a table is written
Table = Callable[[dict[str, Row]], list[str]]


def path_of(device: str) -> Path:
    """Return the file of a device, such as ``amd-epyc-avx2.json``."""
    return RESULTS / f"{re.sub('[^a-z0-9_]+', '-', device.lower()).strip('-')}.json"


def read(path: Path) -> dict[str, Row]:
    """Return the rows of a file by name; none if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def read_replaceable(path: Path) -> dict[str, Row]:
    """Return the rows that an earlier benchmark wrote, which a new one may replace; none if the file does not exist.

    Raises UsageError for a file that no benchmark wrote.
    """
    if not path.exists():
        return {}
    try:
        rows = parse_json(read_text(path))
    except ValueError:  # a UsageError as well
        rows = None
    is_row = [isinstance(row, dict) and isinstance(row.get("environment"), dict) for row in _values(rows)]
    if not is_row or not all(is_row):
        raise UsageError(f"--out: {path} exists and was not written by a benchmark: name another file")
    return rows


def _values(content: Any) -> list[Any]:
    return [*content.values()] if isinstance(content, dict) else []


def write(path: Path, rows: dict[str, Row]) -> None:
    """Write rows to a file, which is complete or as it was."""
    with replacing(path) as file:
        file.write(json.dumps(rows, indent=1) + "\n")


def store(name: str, row: Row) -> Path:
    """Keep a row, without the times of single steps, in the device's file; it replaces the earlier row of its name."""
    path = path_of(row["environment"]["device"])
    stored = read(path) | {name: {variant: without(numbers, "step_ms") for variant, numbers in row.items()}}
    write(path, dict(sorted(stored.items())))
    return path


def without(numbers: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the numbers except those of these names."""
    return {name: value for name, value in numbers.items() if name not in names}


def is_current(row: Row, variants: list[str], commit: str | None) -> bool:
    """Return whether a row has these variants, those of the checkout measured on its commit without changed files."""
    measured = without(row, "environment")
    commits = {numbers.get("commit") for variant, numbers in measured.items() if "@" not in variant}
    return list(measured) == variants and commits == {commit} and not str(commit).endswith("-dirty")


def render() -> list[Path]:
    """Write the tables into the documents; returns their paths."""
    paths = []
    for name, tables in DOCUMENTS.items():
        path = CHECKOUT / name
        text = rendered(path.read_text(), tables)
        with replacing(path) as file:
            file.write(text)
        paths.append(path)
    return paths


def rendered(document: str, tables: Mapping[Marks, Table]) -> str:
    """Return a document with its tables replaced, which are between marks."""
    for (start, end), table in tables.items():
        before, _, rest = document.partition(start)
        _, _, after = rest.partition(end)
        parts = [start]
        for path in sorted(RESULTS.glob("*.json")):
            rows = read(path)
            device = next(iter(rows.values()))["environment"]["device"]
            if lines := table(rows):
                parts += [f"### {device}\n", *lines]
        document = "\n".join([before + parts[0], "", *parts[1:], end]) + after
    return document


def of_costs(rows: dict[str, Row], wanted: bool) -> dict[str, Row]:
    """Return the rows of the methods' costs, or all others."""
    return {name: row for name, row in rows.items() if name.startswith(f"{COSTS}:") == wanted}


def cost_table(rows: dict[str, Row]) -> list[str]:
    """Return a table per row of the methods' costs, a line per method, the cheapest first."""
    heads = ["method", "step", "relative to KD", "quartiles", "images: student", "images: teacher"]
    lines = []
    for name, row in of_costs(rows, wanted=True).items():
        lines += [f"`{name}`", "", row_of(heads), row_of(["---"] * len(heads))]
        for method, numbers in sorted(without(row, "environment").items(), key=lambda item: item[1]["relative"]):
            low, _, high = numbers["relative_quartiles"]
            cells = [method, duration(numbers), f"{numbers['relative']:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append(row_of([*cells, passes(numbers, "student"), passes(numbers, "teacher")]))
        lines.append("")
    return lines


def passes(numbers: Numbers, network: str) -> str:
    """Return how many images pass through a network for each one of the batch, and in how many passes if not one."""
    count = numbers[f"{network}_passes"]
    return f"{numbers[network]:g} in {count} passes" if count > 1 else f"{numbers[network]:g}"


def short_table(rows: dict[str, Row]) -> list[str]:
    """Return one table per set of variants, a row per case: times, and how often the first's speed that is."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in of_costs(rows, wanted=False).items():
        groups.setdefault(tuple(without(row, "environment")), []).append(name)
    lines = []
    for variants, names in groups.items():
        in_memory = [variant for variant in variants if rows[names[0]][variant]["peak_memory_bytes"] is not None]
        heads = ["", *map(title, variants), *(f"MiB, {title(variant)}" for variant in in_memory)]
        lines += [row_of(heads), row_of(["---"] * len(heads))]
        for name in names:
            numbers = rows[name]
            cells = [f"{duration(numbers[variant])} ({numbers[variant]['times_as_fast']:.2f})" for variant in variants]
            peaks = [megabytes(numbers[variant]) for variant in in_memory]
            lines.append(row_of([f"`{name}`", *cells, *peaks]))
        lines.append("")
    return lines


def long_table(rows: dict[str, Row]) -> list[str]:
    """Return a table with a row per case and variant."""
    heads = [
        "case",
        "variant",
        "time",
        "quartiles",
        "times as fast",
        "95 % interval",
        "peak MiB",
        "first step, s",
        "threads",
        "spin count",
        "commit",
        "PyTorch",
        "date",
    ]
    lines = [row_of(heads), row_of(["---"] * len(heads))]
    for name, row in of_costs(rows, wanted=False).items():
        for variant, numbers in without(row, "environment").items():
            details = row["environment"] | numbers
            interval = numbers.get("times_interval")
            first_step = numbers.get("first_step_seconds")
            cells = [
                f"`{name}`",
                f"`{variant}`",
                duration(numbers),
                quartiles(numbers),
                f"{numbers['times_as_fast']:.2f}",
                f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-",
                megabytes(numbers),
                f"{first_step:.1f}" if first_step else "-",
                details.get("threads") or "-",
                details.get("spin_count") or "-",
                details["commit"],
                details["versions"]["torch"],
                details["date"],
            ]
            lines.append(row_of([str(cell) for cell in cells]))
    return [*lines, ""]


def row_of(cells: list[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def title(variant: str) -> str:
    """Return the heading of a variant."""
    return NAMES.get(variant, f"`{variant}`")


def duration(numbers: Numbers) -> str:
    """Return the median time of a step or a command, with its unit."""
    if "seconds" in numbers:
        return f"{numbers['seconds']:,.1f} s"
    return f"{numbers['ms_per_step']:,.0f} ms"


def quartiles(numbers: Numbers) -> str:
    """Return the first and the last quartile, in the unit of :func:`duration`."""
    if "seconds" in numbers:
        low, _, high = numbers["seconds_quartiles"]
        return f"{low:,.1f} to {high:,.1f}"
    low, _, high = numbers["ms_quartiles"]
    return f"{low:,.0f} to {high:,.0f}"


def megabytes(numbers: Numbers) -> str:
    """Return the peak memory in MiB."""
    peak = numbers["peak_memory_bytes"]
    return "-" if peak is None else f"{peak / 2**20:,.0f}"


DOCUMENTS: dict[str, dict[Marks, Table]] = {
    "benchmarks/README.md": {MARKS: long_table},
    "docs/speed.md": {MARKS: short_table, COST_MARKS: cost_table},
}
