"""Test the page of findings against the heads of the scripts that show them."""

import os
import runpy
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FINDINGS = sorted((REPOSITORY / "findings").glob("*.sh"))
SCRIPT = REPOSITORY / "scripts" / "findings_page.py"


def test_page_equals_what_its_script_writes() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["PAGE"].read_text() == script["page"](script["read_findings"]()), "python scripts/findings_page.py"


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_finding_is_a_valid_program_that_pins_its_packages(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    text = path.read_text()
    assert "hsakd_pl" not in text and "==" in text and "mktemp -d" in text


def test_script_without_a_row_or_a_head_is_named(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    row = "| `one.sh` | short | here |\n"
    script["read_findings"].__globals__["FINDINGS"] = tmp_path
    (tmp_path / "README.md").write_text(row)
    with pytest.raises(ValueError, match=r"one\.sh"):
        script["read_findings"]()
    (tmp_path / "one.sh").write_text("#!/usr/bin/env bash\n# It happens.\n# library 1.0, 2026-12-01\nset -eu\n")
    with pytest.raises(ValueError, match=r"the head of one\.sh lacks what most people expect"):
        script["read_findings"]()
