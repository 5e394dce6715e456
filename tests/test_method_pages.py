"""Test that the pages of the methods are complete, up to date, and state what the tables of the bench hold."""

import csv
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hsakd_pl import methods
from hsakd_pl.commands.bench.cells import select_cells
from hsakd_pl.recipes import BENCH_TABLES

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {path.stem: path.read_text() for path in (REPOSITORY / "docs/methods").glob("*.md") if path.stem != "index"}
INDEX = (REPOSITORY / "docs/methods/index.md").read_text()
PUBLIC = [name for name in methods.__all__ if name.endswith("Module") and name != "DistilledModule"]


@pytest.fixture
def method_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the script that writes the pages."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import method_pages

    yield method_pages
    del sys.modules["method_pages"]


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_pages_equal_what_their_script_writes(method_pages: ModuleType) -> None:
    documents = method_pages.documents()
    assert {path for path, text in documents.items() if path.read_text() != text} == set()
    assert {path.stem for path in documents} == {*PAGES, "index"}


def test_every_method_has_a_page_and_a_line_in_the_index() -> None:
    lines = {cells(line)[2].strip("`"): cells(line) for line in INDEX.splitlines() if line.startswith("| [")}
    assert {*lines} == {*PUBLIC}
    for name, line in lines.items():
        page = PAGES[line[0].partition("](")[2].removesuffix(".md)")]
        assert f"#hsakd_pl.methods.{name})" in page, name


@pytest.mark.parametrize("page", PAGES)
def test_page_has_formula_options_command_and_numbers(page: str) -> None:
    headings = re.findall(r"^## (.+)$", PAGES[page], re.MULTILINE)
    assert headings == ["Formula", "Options", "Training", "Constants and numbers", "Why your reproduction differs"]


@pytest.mark.parametrize("page", PAGES)
def test_command_of_page_trains_its_methods(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"`(\w+\.csv)`.+?```csv\n(.+?)```", PAGES[page], re.DOTALL)
    for name, table in blocks:
        Path(name).write_text(table)
    trained = set()
    for command in re.findall(r"^(hsakd bench .+)$", PAGES[page].replace("\\\n", ""), re.MULTILINE):
        _, _, table, *options = shlex.split(command)
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        names = {option: chosen.pop(option, "").split(",") for option in ("--methods", "--pairs")}
        assert chosen == {"--seeds": "0-2"}
        selected = [[name for name in names[option] if name] for option in names]
        found, recipes = select_cells([table], *selected)
        assert found
        trained |= {recipes[cell.recipe].config["model"]["class_path"].rpartition(".")[2] for cell in found}
    assert {*documented(PAGES[page])} - {"SSKDProjectionModule"} == trained  # which the bench trains before SSKD


def test_published_numbers_on_pages_equal_the_tables() -> None:
    in_tables = set()
    for table, path in BENCH_TABLES.items():
        with path.open(newline="") as lines:
            for line in csv.DictReader(lines):
                name = line["class"].removeprefix("hsakd_pl.methods.")
                numbers = {pair: cell.partition("; ")[0] for pair, cell in line.items() if "-" in pair}
                in_tables |= {(name, table, pair, number) for pair, number in numbers.items() if name in PUBLIC}
    published = {entry for entry in in_tables if entry[3] not in ("", "-")}
    assert len(published) > 200
    further = set()
    for name, page in PAGES.items():
        expected = {tuple(number) for module, *number in published if module in documented(page)}
        assert expected - numbers_of(page) == set()
        further |= {(name, table) for table, _, _ in numbers_of(page) - expected}
    assert further == {("kd", "hsakd")}  # the numbers of the paper's own recipes


def test_methods_of_expensive_steps_give_a_reason(method_pages: ModuleType) -> None:
    expensive = {
        name
        for name, lines in method_pages.costs().items()
        for numbers in lines.values()
        if max(numbers) > 1.3  # times a step of KD
    }
    assert expensive <= method_pages.REASONS.keys() <= {*PUBLIC}
    for name, reason in method_pages.REASONS.items():
        (page,) = (page for page in PAGES.values() if name in documented(page))
        assert reason in page


def test_costs_of_steps_are_read_by_class_and_line(method_pages: ModuleType, tmp_path: Path) -> None:
    for device, relative in (("a", 1.0), ("b", 1.25)):
        row = {
            "WKD-L": {"class": "methods.WKDModule", "relative": relative},
            "WKD-F": {"class": "methods.WKDModule", "relative": 1.5},
            "KD": {"class": "methods.KDModule", "relative": relative},
            "environment": {},
        }
        path = tmp_path / "benchmarks/results" / f"{device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"method-costs:x-y batch 16": row, "student:x-y batch 16": {"environment": {}}}))
    method_pages.REPOSITORY = tmp_path
    assert method_pages.cost(methods.WKDModule) == "WKD-L: 1.00 to 1.25<br>WKD-F: 1.50"
    assert method_pages.cost(methods.KDModule) == "1.00 to 1.25" and method_pages.cost(methods.CRDModule) == ""


def documented(page: str) -> list[str]:
    """Return the modules that a page describes."""
    return [name for name in PUBLIC if f"### [`{name}`]" in page]


def numbers_of(page: str) -> set[tuple[str, str, str]]:
    """Return table, pair and published number of all lines of a page that have one."""
    section = page.partition("## Constants and numbers")[2].partition("\n## ")[0]
    numbers = set()
    for table, text in re.findall(r"^\*\*`([\w-]+)`\*\*(.+?)(?=^\*\*|\Z)", section, re.MULTILINE | re.DOTALL):
        rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
        for row in rows[2:]:
            numbers.add((table, row[0], row[rows[0].index("published")]))
    return {entry for entry in numbers if entry[2] != "-"}
