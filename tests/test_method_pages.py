"""Test that the pages of the methods are complete, up to date, and state what the tables of the bench hold."""

import csv
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
    assert [*lines] != sorted(lines) and {*lines} == {*PUBLIC}
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
    for command in re.findall(r"^(hsakd bench .+)$", PAGES[page], re.MULTILINE):
        _, _, table, *options = shlex.split(command)
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        names = {option: chosen.pop(option, "").split(",") for option in ("--methods", "--pairs")}
        assert chosen == {"--seeds": "0-2"}
        selected = [[name for name in names[option] if name] for option in names]
        found, recipes = select_cells([table], *selected)
        assert found
        trained |= {recipes[cell.recipe].config["model"]["class_path"].rpartition(".")[2] for cell in found}
    documented = {name for name in PUBLIC if f"### [`{name}`]" in PAGES[page]}
    assert documented - {"SSKDProjectionModule"} == trained  # which the bench trains before SSKD


def test_published_numbers_on_pages_equal_the_tables() -> None:
    classes: dict[str, str] = {}
    published = set()
    for table, path in BENCH_TABLES.items():
        with path.open(newline="") as lines:
            for line in csv.DictReader(lines):
                for pair, cell in line.items():
                    number = cell.partition("; ")[0]
                    if "-" in pair and number not in ("", "-") and line["class"].startswith("hsakd_pl.methods."):
                        classes[line["method"]] = line["class"].rpartition(".")[2]
                        published.add((line["class"].rpartition(".")[2], table, pair, line["method"], number))
    assert len(published) > 200
    shown = set()
    for page in PAGES.values():
        documented = [name for name in PUBLIC if f"### [`{name}`]" in page]
        for table, text in re.findall(
            r"^\*\*`([\w-]+)`\*\*: (.+?)(?=\n\*\*|\nNot meas|\nMeas)", page, re.MULTILINE | re.DOTALL
        ):
            rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
            for row in rows[2:]:
                named = dict(zip(rows[0], row, strict=True))
                number = named["published"]
                if number != "-":
                    of_page = {
                        entry for entry in published if entry[0] in documented and entry[1:3] == (table, named["pair"])
                    }
                    matching = {
                        entry for entry in of_page if named.get("method", entry[3]) == entry[3] and entry[4] == number
                    }
                    assert matching or table == "hsakd", (page[:200], row)  # KD there is a recipe of the paper
                    shown |= matching
    assert published - shown == set()
