"""Test the script that compares repeated runs with stored ones."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import run

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of two runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run("fit", trainer={"max_epochs": 2}), "stored/kd/seed0")
    shutil.copytree("stored/kd/seed0", "stored/kd/seed1")
    return Path("stored")


def compare() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHECKOUT / "scripts/compare_runs.py", "stored", "repeated"]
    return subprocess.run(command, capture_output=True, text=True)


def edit(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the result of a repeated run."""
    path = Path("repeated", name, "result.json")
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))


def test_equal_runs_differ_by_nothing(stored: Path) -> None:
    shutil.copytree(stored, "repeated")
    shutil.copytree("stored/kd/seed0", "repeated/kd/seed2")
    ended = compare()
    assert ended.returncode == 0, ended.stderr
    *_, first, second, others = ended.stdout.splitlines()
    for seed, line in enumerate((first, second)):
        name, loss, same_loss, difference, accuracy, same_accuracy, change = line.split()
        assert (name, loss, accuracy) == (f"kd/seed{seed}", same_loss, same_accuracy)
        assert (difference, change) == ("+0.00000", "+0.00")
    assert others == "1 run in repeated without a stored one"


def test_differences_are_shown_and_another_protocol_is_an_error(stored: Path) -> None:
    shutil.copytree(stored, "repeated")
    edit("kd/seed0", lambda row: row.update(last_val_acc=row["last_val_acc"] + 0.1))
    edit("kd/seed1", lambda row: row["protocol"].update(hash="0"))
    ended = compare()
    *_, first, second = ended.stdout.splitlines()
    assert first.endswith(" +10.00") and second.endswith("another protocol")
    assert ended.returncode == 1 and ended.stderr == "error: another protocol than the stored one: kd/seed1\n"


def test_shorter_run_is_compared_by_its_first_loss(stored: Path) -> None:
    run("fit", trainer={"max_epochs": 1, "default_root_dir": "repeated/kd/seed0"})
    ended = compare()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].endswith("+0.00000   1 of 2 epochs")


@pytest.mark.parametrize("spoiled", [False, True])
def test_nothing_to_compare_is_one_line(spoiled: bool, stored: Path) -> None:
    Path("repeated/kd/seed0").mkdir(parents=True)
    if spoiled:
        Path("repeated/kd/seed0/result.json").write_text("{")
    ended = compare()
    assert ended.returncode == (2 if spoiled else 1)
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
