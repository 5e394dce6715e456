"""Test the script that draws the curves of stored runs."""

import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import read_history

CHECKOUT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(CHECKOUT / "scripts/curves.py"))
SVG = "{http://www.w3.org/2000/svg}"


def test_stored_curves_equal_output_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = tmp_path / "curves.svg"
    monkeypatch.setattr(sys, "argv", ["curves.py", str(CHECKOUT / "results/small"), str(drawn)])
    SCRIPT["main"]()
    assert drawn.read_bytes() == (CHECKOUT / "docs/assets/curves-small.svg").read_bytes()


def test_curves_show_chosen_rows_at_their_values() -> None:
    """Compare positions with the files: a straight line leads from values to distances from the top."""
    stored = CHECKOUT / "results/small"
    svg = ElementTree.fromstring(SCRIPT["drawing"](stored, "train/loss_ce", ["KD", "DKD"]))
    assert [text.text for text in svg.findall(f"{SVG}text")] == ["KD, 29.31 %", "DKD, 32.70 %"]
    values = []
    positions = []
    for method, line in zip(("kd", "dkd"), svg.findall(f"{SVG}polyline"), strict=True):
        positions += [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        history = read_history(stored / f"small/{method}_wrn_40_2-wrn_16_2/seed0/metrics.csv")
        values += [row["train/loss_ce"] for row in history]
    assert len(values) == len(positions) == 60
    slope, intercept = np.polyfit(values, positions, 1)
    assert slope < 0 and np.allclose(np.multiply(values, slope) + intercept, positions, atol=0.1)


def test_curves_of_several_seeds_have_a_band(tmp_path: Path) -> None:
    svg = ElementTree.fromstring(SCRIPT["drawing"](CHECKOUT / "results/precision/32-true", "train/loss", []))
    assert len(svg.findall(f"{SVG}polygon")) == len(svg.findall(f"{SVG}polyline")) == 3


def test_curves_that_do_not_exist_raise(tmp_path: Path) -> None:
    run = CHECKOUT / "results/small/small/kd_wrn_40_2-wrn_16_2/seed0"
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UsageError, match="FitNet is not one of KD"):
        SCRIPT["drawing"](tmp_path, "train/loss", ["FitNet"])
    (tmp_path / "run/metrics.csv").unlink()
    with pytest.raises(UsageError, match=r"no run below .* has train/loss"):
        SCRIPT["drawing"](tmp_path, "train/loss", [])
    shutil.copytree(run, tmp_path / "other")
    result = (run / "result.json").read_text().replace("ee93d6e1deaa", "0123456789ab").replace("35707e557e4d", "0")
    (tmp_path / "other/result.json").write_text(result)
    with pytest.raises(UsageError, match="several data sets"):
        SCRIPT["drawing"](tmp_path, "train/loss", [])


def test_labels_move_apart_as_little_as_possible() -> None:
    assert SCRIPT["spread"]([50, 10, 52], 10) == [46.0, 10.0, 56.0]
    assert SCRIPT["spread"]([0, 0, 0, 100], 10) == [-10.0, 0.0, 10.0, 100.0]
