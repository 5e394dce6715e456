"""Test the quickstart: what it prints, and what it leaves behind."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import run

import hsakd_pl
from hsakd_pl.quickstart import main

COLUMNS = ["network", "trained", "on", "parameters", "accuracy", "s"]


@pytest.mark.slow
def test_quickstart_prints_a_line_for_each_network_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("pytorch_lightning").level
    accuracies = hsakd_pl.quickstart(teacher_epochs=2, student_epochs=20)
    printed = capfd.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split() == COLUMNS and len(lines) == 3
    assert [line.split(" images")[0].split()[-1] for line in lines] == ["1,257", "50", "50"]
    for line, accuracy in zip(lines, accuracies, strict=True):
        assert f"{100 * accuracy:.1f} %" in line
    assert accuracies.teacher > 0.5 and accuracies.distilled > 0.3
    assert printed.err == "" and not list(tmp_path.iterdir())
    assert logging.getLogger("pytorch_lightning").level == level


@pytest.mark.nightly
def test_seed_decides_the_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (hsakd_pl.quickstart(seed, 1, 1) for seed in (0, 0, 1))
    assert first == again != other


def test_program_takes_the_number_of_epochs() -> None:
    ended = run(main, "--teacher-epochs", "1", "--student-epochs", "1")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 4


def test_module_waits_for_pytorch_until_it_trains() -> None:
    code = "import sys, hsakd_pl.quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
