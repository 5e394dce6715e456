"""Test the command line end to end on the digits."""

import csv
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small import error_of, history, run

from hsakd_pl import (
    BaselineModule,
    CIFAR100DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    LinearProbeModule,
    MutualModule,
    STL10DataModule,
    StudentModule,
    TeacherModule,
    TinyImageNetDataModule,
    create_network,
    load_weights,
)
from hsakd_pl.cli.main import main
from hsakd_pl.ops import ROTATIONS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def write_images(folder: Path, count: int) -> torch.Tensor:
    """Write PNG files of test digits; return them as the network sees them."""
    data = DigitsDataModule(num_workers=0)
    data.setup("test")
    images = data.splits["test"].images[:count]
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return data.on_after_batch_transfer((images, None), 0)[0]


def test_cli_fits_tests_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("fit")
    weights = {"model": {"init_args": {"weights": str(folder / "last.ckpt")}}}
    run("test", **weights)
    tested = json.loads((folder / "test.json").read_text())
    assert tested["acc"] == pytest.approx(history(folder)[-1]["val/acc"], abs=1e-6)
    run("validate", "--ckpt_path", str(folder / "last.ckpt"))
    assert f"{history(folder)[-1]['val/loss']:.4f}"[:-1] in capsys.readouterr().out
    inputs = write_images(tmp_path / "images", 5)
    run("predict", **weights, data={"init_args": {"predict_dir": "images", "batch_size": 2}})
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    network = load_weights(create_network("resnet8", 10, branches=False), folder / "last.ckpt").eval()
    with torch.no_grad():
        logits = network(ROTATIONS(inputs)).unflatten(0, (4, 5))
    probability, predicted = logits[0].softmax(1).max(1)
    assert [row["image"] for row in rows] == [f"images/{number}.png" for number in range(5)]
    assert [int(row["class"]) for row in rows] == predicted.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(probability.tolist(), abs=1e-4)
    agreement = [float(row["agreement"]) for row in rows]
    assert agreement == logits.argmax(2).eq(predicted).float().mean(0).tolist()


def test_cli_trains_teacher_and_then_student() -> None:
    folder = run("fit", module="TeacherModule")
    weights = str(folder / "last.ckpt")
    teacher = {"teacher": "resnet8", "teacher_weights": weights, "network": "resnet14"}
    stopping = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val/acc"}}
    student = (
        run("fit", module="StudentModule", model={"init_args": teacher}, trainer={"callbacks": [stopping]})
        / "last.ckpt"
    )
    again = StudentModule.load_from_checkpoint(student)
    expected = load_weights(create_network("resnet8", 10), weights).state_dict()
    torch.testing.assert_close(again.teacher.state_dict(), expected, rtol=0, atol=0)
    saved = torch.load(student, weights_only=True)
    assert {"EarlyStopping", "BestCheckpoint", "LastCheckpoint"} <= {
        key.partition("{")[0] for key in saved["callbacks"]
    }
    assert not [key for key in saved["state_dict"] if "teacher" in key]
    assert len(saved["hyper_parameters"]["teacher_sha256"]) == 64
    assert load_weights(create_network("resnet14", 10), student).num_classes == 10  # the data's classes, not 100


def test_finished_run_is_resumed_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    last = run("fit") / "last.ckpt"
    before = last.read_bytes()
    assert error_of(capsys, lambda: run("fit")) == (
        f"{last} is the result of an earlier run: resume it with --ckpt_path {last}, "
        "or name another folder with --trainer.default_root_dir"
    )
    assert last.read_bytes() == before
    run("fit", "--ckpt_path", str(last), trainer={"max_epochs": 2})
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_configuration_takes_precedence_over_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("fit", module="TeacherModule")
    teacher: dict[str, Any] = {"teacher": "resnet8", "teacher_weights": str(folder / "last.ckpt")}
    last = run("fit", module="StudentModule", model={"init_args": teacher}) / "last.ckpt"
    (folder / "last.ckpt").unlink()
    run("test", "--ckpt_path", str(last), module="StudentModule", model={"init_args": teacher})
    message = error_of(capsys, lambda: run("test", "--ckpt_path", str(last)))
    assert str(last) in message
    assert "unexpected: networks.0.backbone" in message


@pytest.mark.parametrize(
    ("options", "expected"), [({}, True), ({"deterministic": True}, False), ({"benchmark": False}, False)]
)
def test_cudnn_benchmark_is_on_unless_disabled(
    options: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not expected)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_: None)
    run("fit", trainer=options)
    assert torch.backends.cudnn.benchmark is expected


def test_main_script_lists_commands() -> None:
    script = Path(__file__).parents[1] / "main.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    commands = ("fit", "validate", "test", "predict", "sweep", "report", "recipes", "export")
    assert all(f"\n  {command} " in shown for command in commands)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_only_the_parser_of_the_called_command_is_built(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr("hsakd_pl.cli.lightning_cli.describe_command", lambda parser, name: built.append(name))
    with pytest.raises(SystemExit):
        main([command, "--model", "NoModule"])
    assert built == [command]


@pytest.mark.parametrize("command", ["sweep", "report", "recipes", "export"])
def test_help_of_other_commands_shows_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"usage: hsakd {command}" in capsys.readouterr().out


MISUSED = [
    ["report", "nowhere"],
    ["report"],
    ["export"],
    ["export", "nowhere"],
    ["sweep"],
    ["sweep", "--seeds", "2-1"],
    ["recipes", "--x"],
]


@pytest.mark.parametrize("command", MISUSED)
def test_mistakes_of_other_commands_are_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, lambda: main(command))


@pytest.mark.parametrize("module", [StudentModule, TeacherModule, MutualModule, BaselineModule, LinearProbeModule])
def test_module_signature_shows_every_option(module: type, capsys: pytest.CaptureFixture[str]) -> None:
    """Check Python's signatures and the command line: nothing is hidden behind ``**kwargs``."""
    options = inspect.signature(module).parameters
    wanted = {"lr", "momentum", "milestones", "optimizer", "lr_scheduler", "branch_metrics_every", "fast", "compile"}
    assert wanted < set(options) and not [each for each in options.values() if each.kind is each.VAR_KEYWORD]
    with pytest.raises(SystemExit):
        main(["fit", f"--model.help=hsakd_pl.{module.__name__}"])
    shown = capsys.readouterr().out
    assert [
        name for name in options if f"--model.init_args.{name}" not in shown and f"--model.{name}" not in shown
    ] == []


@pytest.mark.parametrize(
    "module",
    [
        CIFAR100DataModule,
        STL10DataModule,
        TinyImageNetDataModule,
        ImageNetDataModule,
        ImageFolderDataModule,
        DigitsDataModule,
    ],
)
def test_data_module_signature_shows_every_option(module: type) -> None:
    options = inspect.signature(module).parameters
    assert {"root", "batch_size", "train_fraction", "val_fraction", "seed", "augment", "num_workers"} < set(options)
    assert not [each for each in options.values() if each.kind is each.VAR_KEYWORD]
    assert ("decode_on_device" in options) == (module is ImageNetDataModule)


def test_cli_trains_probe_on_features(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"init_args": {"augment": False}}
    probe = {"init_args": {"network": "resnet8", "weights": "random", "knn": 3}}
    images = run("fit", module="LinearProbeModule", model=probe, data=data, trainer={"default_root_dir": "images"})
    assert images == Path("runs/LinearProbeModule")
    cached = {"default_root_dir": "features"}
    run("fit", "--cache_features", "true", module="LinearProbeModule", model=probe, data=data, trainer=cached)
    losses = [history(folder)[-1]["val/loss"] for folder in ("images", "features")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    message = error_of(capsys, lambda: run("fit", "--cache_features", "true"))
    assert "cache_features is for a LinearProbeModule, not for BaselineModule" in message
