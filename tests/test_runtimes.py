"""Test predict with the runtimes of an export, and its table on the terminal."""

import csv
import json
import sys
from pathlib import Path

import pytest
import small
import torch
from PIL import Image

from hsakd_pl import DigitsDataModule, create_network, export_student
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import Student
from hsakd_pl.files.runtimes import RUNTIMES, check_runtime, open_graph

pytestmark = small.needs_onnx


def needs(runtime: str) -> None:
    """Skip a test unless a runtime is installed."""
    if runtime != "torch":
        pytest.importorskip(runtime, reason=f"{runtime} is not installed: pip install 'hsakd_pl[{runtime}]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with exports, for floating-point images and for uint8, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    network = small.with_statistics(create_network("resnet8", 10, branches=False))
    torch.save(network.state_dict(), folder / "weights.pth")
    description = DigitsDataModule().description
    for name in ("float", "uint8"):
        export_student(
            folder / "weights.pth", folder / name, network="resnet8", description=description, input=name,
            formats=("safetensors", "onnx"),
        )  # fmt: skip
    (folder / "pictures").mkdir()
    images = DigitsDataModule().read(train=False).images
    for number in range(7):
        pixels = images[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((20 + number, 18)).save(folder / f"pictures/{number}.png")
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    return folder


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def predict(folder: Path, into: Path, source: str, *options: str) -> list[dict[str, str]]:
    arguments = [str(folder / source), str(folder / "pictures"), "--folder", str(into), "--num_workers", "0"]
    main(["predict", *arguments, *options])
    return predictions(into)


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
@pytest.mark.parametrize("source", ["float", "uint8"])
def test_predictions_of_runtimes_equal_those_of_torch(folder: Path, tmp_path: Path, source: str, runtime: str) -> None:
    needs(runtime)
    expected = predict(folder, tmp_path, source)
    rows = predict(folder, tmp_path, source, "--runtime", runtime)  # of the same weights: replaces the file
    assert [row["image"] for row in rows] == [row["image"] for row in expected] and len(rows) == 8
    for row, wanted in zip(rows, expected, strict=True):
        assert (row["class"], row["agreement"], row["error"]) == (
            wanted["class"],
            wanted["agreement"],
            wanted["error"],
        )
        if not row["error"]:
            assert float(row["probability"]) == pytest.approx(float(wanted["probability"]), abs=1e-5)


def test_file_of_an_export_is_a_source(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = predict(folder, tmp_path / "torch", "float")
    capsys.readouterr()
    rows = predict(folder, tmp_path / "onnx", "float/model.onnx")
    assert [row["class"] for row in rows] == [row["class"] for row in expected]
    assert "8 images predicted with onnxruntime, model.onnx" in capsys.readouterr().out


def test_export_without_weights_predicts_in_onnxruntime(folder: Path, tmp_path: Path) -> None:
    path = folder / "weights.pth"
    description = DigitsDataModule().description
    export_student(path, tmp_path / "graph", ("onnx",), network="resnet8", description=description)
    main(["predict", str(tmp_path / "graph"), str(folder / "pictures"), "--folder", str(tmp_path),
          "--runtime", "onnxruntime", "--num_workers", "0"])  # fmt: skip
    assert [row["class"] for row in predictions(tmp_path)] == [
        row["class"] for row in predict(folder, tmp_path / "torch", "float")
    ]


def test_terminal_shows_a_few_pictures_and_their_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predict(folder, tmp_path, "float")
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if ".png" in line and "predictions" not in line]
    assert [line.split()[0] for line in shown] == ["0.png", "2.png", "4.png", "6.png"]
    assert all(row["class"] in line for row, line in zip(rows[::2], shown, strict=True))
    assert "and 4 more" in printed and "8 images predicted with torch" in printed


def test_missing_and_unknown_runtimes_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(source: Path, *options: str) -> str:
        arguments = ["predict", str(source), str(folder / "pictures"), "--folder", str(tmp_path), *options]
        return small.error_of(capsys, lambda: main(arguments))

    export = folder / "float"
    assert "runtime must be one of torch, onnxruntime, openvino, got onnxruntim" in error(
        export, "--runtime", "onnxruntim"
    )
    assert "which" in error(folder / "weights.pth", "--runtime", "onnxruntime", "--network", "resnet8")
    assert "accelerator gpu" in error(export, "--runtime", "onnxruntime", "--accelerator", "gpu")
    assert "it is not a model on the hub: leave revision out" in error(export, "--revision", "main")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "runtime openvino is not installed" in error(export, "--runtime", "openvino")
    with pytest.raises(UsageError, match=r"pip install 'hsakd_pl\[openvino\]'"):
        check_runtime("openvino")


def test_export_without_graph_and_damaged_graph_are_one_line(folder: Path, tmp_path: Path) -> None:
    student = Student(create_network("resnet8", 10, branches=False), **DigitsDataModule().description.saved())
    student.save_pretrained(tmp_path / "weights")
    arguments = [str(folder / "pictures"), "--folder", str(tmp_path), "--runtime", "onnxruntime", "--debug"]
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "weights"), *arguments])
    (tmp_path / "weights/model.onnx").write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"model\.onnx cannot be opened in onnxruntime .*: export it again"):
        open_graph(tmp_path / "weights/model.onnx", "onnxruntime", 1)


def test_model_of_the_hub_is_predicted_at_a_revision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options)
        return str(folder / "float")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    main(["predict", "me/student", str(folder / "pictures"), "--folder", str(tmp_path), "--revision", "v1",
          "--runtime", "onnxruntime", "--num_workers", "0"])  # fmt: skip
    assert asked["revision"] == "v1" and "model.onnx" in asked["allow_patterns"]
    assert "me/student is at commit float" in capsys.readouterr().out


def test_predictions_state_fractions_with_four_digits(folder: Path, tmp_path: Path) -> None:
    rows = predict(folder, tmp_path, "float")
    assert {len(row["agreement"].partition(".")[2]) for row in rows if not row["error"]} == {4}
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(line["agreement"] == round(line["agreement"], 4) for line in lines if "error" not in line)
