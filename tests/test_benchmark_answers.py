"""Test the measurement of steps that read kept answers, with small networks."""

from pathlib import Path

import pytest

from benchmarks import answers
from benchmarks.__main__ import main
from benchmarks.answers import ALONE, ASKING
from hsakd_pl.modules.frozen import Frozen


def test_methods_read_the_answers_that_the_first_one_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = answers.parser().parse_args(["--batch-size", "2", "--steps", "2"])
    fits = answers.fits_of(("resnet14", "resnet8"), tmp_path)
    assert list(fits)[:3] == [ALONE, ASKING, "KD"]
    assert {"DKD", "DIST", "NKD", "WTTM", "RLD", "KD+LS"} < set(fits)
    asked: list[Frozen] = []
    call = Frozen.__call__
    monkeypatch.setattr(Frozen, "__call__", lambda teacher, images: asked.append(teacher) or call(teacher, images))
    times = {name: answers.fit(fits[name](), options) for name in ("KD", "DKD")}
    assert len(asked) == 3  # the steps of the first
    assert [len(milliseconds) for milliseconds in times.values()] == [2, 2]
    answers.fit(fits[ASKING](), options)
    assert len(asked) == 6


def test_saving_counts_one_method_that_asks() -> None:
    numbers = {
        name: {"ms_per_step": 1.0, "relative_quartiles": [1.0, 1.0, 1.0]} for name in (ALONE, ASKING, "KD", "DKD")
    }
    relative = {ALONE: 1.0, ASKING: 4.0, "KD": 1.0, "DKD": 1.0}
    for name, ratio in relative.items():
        numbers[name]["relative"] = ratio
    lines = answers.table("a-b", numbers)
    assert "2 methods, of which one asks: 1.60 times as fast as if all asked" in lines


def test_pair_of_one_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["answers", "resnet8"])
    assert "pair 'resnet8': write it as TEACHER-STUDENT" in capsys.readouterr().err
