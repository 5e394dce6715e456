"""Test that the page of the command line is what the parsers of the commands say."""

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/command-line.md").read_text()


def test_page_equals_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    monkeypatch.setenv("COLUMNS", "60")  # of a narrow terminal, which the page does not follow
    written = runpy.run_path(str(REPOSITORY / "scripts/command_line_page.py"))["page"]()
    assert written == PAGE
