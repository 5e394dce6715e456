"""Test the measurement of exported students in runtimes: what is stored, resumed and rendered."""

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from benchmarks import exports
from benchmarks.__main__ import main
from benchmarks.roads import REFERENCE, ROADS
from hsakd_pl import DigitsDataModule, create_network

pytestmark = small.needs_onnx
SHORT = ["--networks", "resnet8", "--rounds", "1", "--seconds", "0.01", "--images", "64"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store results below a temporary folder, as those of one CPU; return the file."""
    monkeypatch.setattr("benchmarks.exports.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.exports.processor", lambda: "Any CPU, AVX2")
    return tmp_path / "any-cpu-avx2.json"


def test_roads_are_measured_once_and_new_ones_are_added(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = small.with_statistics(create_network("resnet8", 10, branches=False))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    trained = ["--checkpoints", f"resnet8={tmp_path / 'weights.pth'}"]
    for roads in ([REFERENCE], [REFERENCE, "PyTorch pt2", "onnxruntime int8"]):
        exports.main([*SHORT, *trained, "--roads", *roads], DigitsDataModule)
        (stored,) = json.loads(results.read_text()).values()
        assert [*stored] == [*roads, "environment"] or {*stored} == {*roads, "environment"}
    exports.main([*SHORT, *trained, "--roads", REFERENCE], DigitsDataModule)
    assert "resnet8: stored already" in capsys.readouterr().out
    assert stored[REFERENCE]["batch 64"]["times"] == 1 and stored["PyTorch pt2"]["batch 1"]["times"] > 0
    assert stored[REFERENCE]["agreement"] == 1 and stored[REFERENCE]["difference"] < 1e-5
    assert 0 < stored["onnxruntime int8"]["agreement"] <= 1 and 0 <= stored[REFERENCE]["accuracy"] <= 1
    assert stored["environment"]["images"] == 64 and stored["environment"]["trained"]


def test_tables_show_times_and_failures() -> None:
    def numbers(times: float, **more: Any) -> dict[str, Any]:
        return {"batch 1": {"times": times}, "batch 64": {"times": 2 * times}, **more}

    row = {
        REFERENCE: numbers(1.0, accuracy=0.7, agreement=1.0),
        "tract": {"error": "no symbol"},
        "ncnn": numbers(0.5, accuracy=0.6, agreement=0.5),
        "environment": {"device": "Any CPU", "threads": 1},
    }
    text = "\n".join(exports.tables({"resnet8": row}))
    assert "### Any CPU, 1 thread" in text
    assert f"| {REFERENCE} | 1.00 / 2.00, 70.0 % |" in text
    assert "| tract | fails |" in text and "| ncnn | 0.50 / 1.00, 60.0 %, agrees 50.0 % |" in text
    assert "OpenVINO" not in text


def test_page_has_the_stored_tables() -> None:
    document = exports.DOCUMENT.read_text()
    for path in exports.RESULTS.glob("*.json"):
        for line in exports.tables(json.loads(path.read_text())):
            assert line in document, path


def test_roads_need_the_reference(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["exports", "--roads", "PyTorch pt2"])
    assert f"--roads: all are compared with {REFERENCE}" in capsys.readouterr().err
    assert exports.missing_roads({}, [REFERENCE, "tract"]) == [REFERENCE, "tract"]
    assert exports.missing_roads(dict.fromkeys(ROADS), ["tract"]) == []
