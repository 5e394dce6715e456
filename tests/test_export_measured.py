"""Test what an export quantises, measures and records, and the names and fields that integrators rely on."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from huggingface_hub import ModelCard

from hsakd_pl import BaselineModule, DigitsDataModule, export_student, load_student
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.export.export import Export
from hsakd_pl.export.measure import Measurement, Speed
from hsakd_pl.networks import create_network

pytestmark = small.needs_onnx
DESCRIPTION = DigitsDataModule().description
LIMITS = {"limit_train_batches": 8, "limit_val_batches": 1}


def digits() -> DigitsDataModule:
    return DigitsDataModule(num_workers=0, seed=7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a network trained for a few steps."""
    folder = tmp_path_factory.mktemp("run")
    module = BaselineModule("resnet8", num_classes=10, lr=0.05)
    small.trainer(folder, **LIMITS).fit(module, datamodule=digits())
    return folder


@pytest.fixture(scope="module")
def static(run: Path) -> Export:
    """Export it with the default int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsakd_pl.export.measure.SECONDS", 0.01)
        return export_student(run, run / "static", ("safetensors", "onnx"), int8="static", data=digits())


def record(export: Export) -> dict[str, Any]:
    return json.loads((export.folder / "export.json").read_text())


def test_static_int8_quantises_activations_between_convolutions(static: Export) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(static.folder / "model.int8.onnx").graph
    producer = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node.op_type)
    additions = [node for node in graph.node if node.op_type == "Add"]
    assert additions
    for node in additions:
        assert [producer[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
    for node in graph.node:
        if node.op_type in ("Relu", "Add"):
            assert set(consumers[node.output[0]]) <= {"QuantizeLinear", "Relu"}
    kinds = {tensor.name: tensor for tensor in graph.initializer}
    scales = [
        kinds[node.input[1]].dims
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in kinds and len(kinds[node.input[0]].dims) == 4
    ]
    assert scales and all(len(dims) == 1 and dims[0] > 1 for dims in scales)  # a scale per channel
    zero_points = [kinds[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(zero_points) == {onnx.TensorProto.UINT8}


def test_record_states_how_int8_was_calibrated(static: Export) -> None:
    int8 = record(static)["int8"]
    assert {"kind": "static", "calibration_images": 256, "seed": 7, "ranges": "MinMax"}.items() <= int8.items()
    assert {"Relu", "Add", "Conv"} <= set(int8["operators"])
    assert "256 training images of DigitsDataModule, drawn with seed 7" in (static.folder / "README.md").read_text()


def test_calibration_images_follow_the_seed(run: Path) -> None:
    from hsakd_pl.export.pictures import first_images

    images = [first_images(DigitsDataModule(num_workers=0, seed=seed), DESCRIPTION, "train", 20) for seed in (7, 7, 8)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_measurement_agrees_with_predictions_and_card(static: Export) -> None:
    measured = record(static)["measured"]
    rows = {(row["file"], row["batch_size"]): row for row in measured["rows"]}
    assert [*rows] == [(file, batch) for file in ("model.onnx", "model.int8.onnx") for batch in (1, 32)]
    images, labels = DigitsDataModule().read(train=False)
    student = load_student(static.folder)
    accuracy = float(student(images).argmax(1).eq(labels).float().mean())
    assert rows["model.onnx", 1]["accuracy"] == pytest.approx(accuracy, abs=1e-3)
    assert rows["model.onnx", 32]["agreement"] == 1 and rows["model.onnx", 32]["times_as_fast"] == 1
    assert 0.5 < rows["model.int8.onnx", 1]["agreement"] <= 1
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert measured["images"] == measured["split_images"] == len(labels)
    assert measured["threads"] == torch.get_num_threads() and measured["cpu"]
    assert all(value == round(value, 4) for row in rows.values() for value in row.values() if type(value) is float)
    card = (static.folder / "README.md").read_text()
    assert f"| model.int8.onnx | 32 | {rows['model.int8.onnx', 32]['megabytes']:.2f} |" in card
    assert f"{len(labels)} test images; onnxruntime" in card


def test_measured_images_are_evenly_spaced_over_a_large_split(static: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    from hsakd_pl.export.measure import measure

    monkeypatch.setattr("hsakd_pl.export.measure.MEASURED_IMAGES", 50)
    monkeypatch.setattr("hsakd_pl.export.measure.SECONDS", 0.0)
    found = measure([static.folder / "model.onnx"], DESCRIPTION, "float", digits())
    labels = DigitsDataModule().read(train=False).targets
    assert found.images == 50 and found.split_images == len(labels)
    assert found.conditions.startswith(f"50 of {len(labels)} test images; onnxruntime")


def test_slower_int8_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    from hsakd_pl.export.export import _notes

    rows = [
        Speed("model.onnx", 1.0, 1, 0.7, 1.0, 100.0, 1.0),
        Speed("model.int8.onnx", 0.3, 1, 0.7, 0.9, 73.0, 0.73),
    ]
    measurement = Measurement(rows, 10, 10, None, 1, "a CPU", "onnxruntime 1")
    (note,) = _notes(measurement, "static")
    assert "model.int8.onnx is slower than model.onnx: 0.73 times as fast at batch 1" in note
    assert _notes(measurement._replace(rows=rows[:1]), "static") == []
    assert "makes the file small but not fast" in _notes(None, "dynamic")[0]


def test_onnx_files_name_batch_input_and_output(static: Export) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("model.onnx", "model.int8.onnx"):
        graph = onnx.load(static.folder / name).graph
        (input_value,), (output,) = graph.input, graph.output
        names = [value.type.tensor_type.shape.dim[0].dim_param for value in (input_value, output)]
        assert (input_value.name, output.name, names) == ("input", "logits", ["batch", "batch"]), name
        symbols = {dim.dim_param for value in graph.value_info for dim in value.type.tensor_type.shape.dim}
        assert symbols <= {"", "batch"} or name != "model.onnx"


def test_files_have_the_modes_of_the_umask(run: Path) -> None:
    previous = os.umask(0o027)
    try:
        export_student(run, run / "modes", ("safetensors", "pt2"), description=DESCRIPTION)
        load_student(run / "modes").save_pretrained(run / "again")
    finally:
        os.umask(previous)
    for folder in ("modes", "again"):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (run / folder).iterdir()}
        assert set(modes.values()) == {0o640}, modes


def test_card_tells_validation_from_test_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = small.run("fit", data={"init_args": {"val_fraction": 0.2}})
    small.run("test", "--ckpt_path", "last", data={"init_args": {"val_fraction": 0.2}})
    export_student(folder, "out", ["safetensors"], licence="apache-2.0", base_model="me/base")
    card = ModelCard(Path("out/README.md").read_text())
    splits = {result.metric_name: result.dataset_split for result in card.data.eval_results}
    assert splits["validation accuracy"] == "validation" and splits["test accuracy"] == "test"
    assert card.data.license == "apache-2.0" and card.data.base_model == "me/base"
    assert "%, on images held out of the training split |" in card.text and "%, on the test split |" in card.text
    assert "norms, activations and additions do not count" in card.text


def test_card_says_that_test_images_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = small.run("fit")
    export_student(folder, "out", ["safetensors"])
    card = ModelCard(Path("out/README.md").read_text())
    assert [result.dataset_split for result in card.data.eval_results] == ["test"]
    assert "| validation accuracy | " in card.text and "%, on the test split |" in card.text


def test_timm_weights_are_the_base_model() -> None:
    pytest.importorskip("timm")
    from hsakd_pl.export.card import base_model_of

    options = {"model.init_args.network": "timm:lcnet_050", "model.init_args.weights": "pretrained"}
    assert base_model_of({"protocol": {"options": options}}) == "timm/lcnet_050.ra2_in1k"
    assert base_model_of({"protocol": {"options": options | {"model.init_args.weights": "a.pth"}}}) is None


def test_edited_card_is_not_replaced(run: Path) -> None:
    folder = run / "edited"
    export_student(run, folder, ["safetensors"], description=DESCRIPTION)
    export_student(run, folder, ["safetensors"], description=DESCRIPTION)
    with (folder / "README.md").open("a") as card:
        card.write("my words\n")
    with pytest.raises(UsageError, match=r"README\.md was edited after its export and would be replaced"):
        export_student(run, folder, ["safetensors"], description=DESCRIPTION)
    assert "my words" in (folder / "README.md").read_text()


def test_broken_metadata_of_a_card_are_one_line(run: Path) -> None:
    folder = run / "broken"
    export_student(run, folder, ["safetensors"], description=DESCRIPTION)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("tags:", "tags: [", 1))
    student = load_student(folder)
    with pytest.raises(UsageError, match=r"README\.md: its metadata are not valid .*: repair or remove the file"):
        student.save_pretrained(run / "copied")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": "static"}, "int8: its accuracy is measured on a test split: name the data"),
        ({"int8": "static", "measure": False}, "int8: static ranges come from training images: name the data"),
        ({"measure": True}, "measure: it needs a test split"),
        ({"measure": True, "formats": ["pt2"]}, "measure is True, but formats lacks onnx"),
        ({"licence": "My Licence"}, "license must be an identifier of the Hugging Face Hub"),
        ({"base_model": "a b"}, "base_model must be the id of a model"),
    ],
)
def test_invalid_options_of_export_raise(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_student(run, run / "none", **({"formats": ["onnx"], "description": DESCRIPTION} | options))
    assert not (run / "none").exists()


def test_calibration_images_that_are_missing_or_of_other_classes_raise(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="images: no image below"):
        export_student(run, run / "none", ["onnx"], int8="static", data=digits(), images=tmp_path / "empty")

    class Letters(DigitsDataModule):
        def read_class_names(self) -> list[str]:
            return [*"abcdefghij"]

    path = run / "described.ckpt"
    torch.save(torch.load(run / "last.ckpt", weights_only=True) | {"data": DESCRIPTION.saved()}, path)
    with pytest.raises(UsageError, match=r"Letters: .* has the classes .* but the trained network has"):
        export_student(path, run / "none", ["onnx"], int8="static", data=Letters(num_workers=0))


def test_export_command_measures_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hsakd_pl.export.measure.SECONDS", 0.0)
    folder = small.run("fit")
    capsys.readouterr()
    main(["export", str(folder), "out", "--formats", "onnx", "--int8"])
    printed = capsys.readouterr().out
    assert "images/s" in printed and "model.int8.onnx" in printed and "measured" in printed
    assert json.loads(Path("out/export.json").read_text())["int8"]["kind"] == "static"
    torch.manual_seed(0)
    torch.save(create_network("resnet8", 10, branches=False).state_dict(), "weights.pth")
    main(["export", str(folder), "plain", "--formats", "onnx", "--no-measure"])
    assert json.loads(Path("plain/export.json").read_text())["measured"] is None
