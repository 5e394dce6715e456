"""The command line, end to end on the digits, and the one error that each mistake ends in."""

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hsakd_pl import DigitsDataModule, StudentModule, create_network, load_weights
from hsakd_pl.cli import main
from hsakd_pl.ops import rotate

Run = Callable[..., Path]
CIFAR = "hsakd_pl.CIFAR100DataModule"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], changes[key]) for key in base.keys() & changes if isinstance(base[key], dict)}
    return {**base, **changes, **both}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Function that runs a command on a small configuration with changes, in an empty folder; returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])

    def _run(command: str, *options: str, module: str = "BaselineModule", **changes: dict[str, Any]) -> Path:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        folder = tmp_path / "runs" / module
        config = {
            "model": {"class_path": f"hsakd_pl.{module}", "init_args": {"network": "resnet8", "lr": 0.01}},
            "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": {"num_workers": 0}},
            "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", **quiet},
        }
        config["trainer"]["default_root_dir"] = str(folder)
        (tmp_path / "config.yaml").write_text(json.dumps(merged(config, changes)))
        main([command, "--config", "config.yaml", *options])
        return folder

    return _run


def logged(folder: Path, version: int, metric: str) -> float:
    with (folder / f"logs/version_{version}/metrics.csv").open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row[metric]][-1]


def write_images(folder: Path, count: int) -> torch.Tensor:
    """PNG files of test digits; returns them as the network sees them."""
    data = DigitsDataModule(num_workers=0)
    data.setup("test")
    images = data.splits["test"].images[:count]
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return data.on_after_batch_transfer((images, None), 0)[0]


def test_fit_then_test_then_predict(run: Run, tmp_path: Path) -> None:
    folder = run("fit")
    weights = {"model": {"init_args": {"weights": str(folder / "last.ckpt")}}}
    run("test", **weights)
    assert logged(folder, 1, "test/acc") == logged(folder, 0, "val/acc")
    run("validate", "--ckpt_path", str(folder / "last.ckpt"))
    assert logged(folder, 2, "val/loss") == pytest.approx(logged(folder, 0, "val/loss"))
    inputs = write_images(tmp_path / "images", 5)
    run("predict", **weights, data={"init_args": {"predict_dir": "images", "batch_size": 2}})
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    network = load_weights(create_network("resnet8", 10, branches=False), folder / "last.ckpt").eval()
    with torch.no_grad():
        logits = network(rotate(inputs)).unflatten(0, (4, 5))
    probability, predicted = logits[0].softmax(1).max(1)
    assert [row["image"] for row in rows] == [f"images/{number}.png" for number in range(5)]
    assert [int(row["class"]) for row in rows] == predicted.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(probability.tolist(), abs=1e-4)
    agreement = [float(row["rotation_agreement"]) for row in rows]
    assert agreement == logits.argmax(2).eq(predicted).float().mean(0).tolist()


def test_a_teacher_then_its_student(run: Run) -> None:
    folder = run("fit", module="TeacherModule")
    weights = str(folder / "last.ckpt")
    teacher = {"teacher": "resnet8", "teacher_weights": weights, "network": "resnet14"}
    student = run("fit", module="StudentModule", model={"init_args": teacher}) / "last.ckpt"
    again = StudentModule.load_from_checkpoint(student)
    expected = load_weights(create_network("resnet8", 10), weights).state_dict()
    torch.testing.assert_close(again.teacher.state_dict(), expected, rtol=0, atol=0)
    saved = torch.load(student, weights_only=False)
    assert not [key for key in saved["state_dict"] if "teacher" in key]
    assert len(saved["hyper_parameters"]["teacher_sha256"]) == 64
    assert load_weights(create_network("resnet14", 10), student).num_classes == 10  # the data's classes, not 100


def test_a_run_is_resumed_not_overwritten(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    last = run("fit") / "last.ckpt"
    before = last.read_bytes()
    assert error_of(capsys, lambda: run("fit")) == (
        f"{last} is the result of an earlier run: resume it with --ckpt_path {last}, "
        "or name another folder with --trainer.default_root_dir"
    )
    assert last.read_bytes() == before
    run("fit", "--ckpt_path", str(last), trainer={"max_epochs": 2})
    assert torch.load(last, weights_only=False)["epoch"] == 1


def error_of(capsys: pytest.CaptureFixture[str], command: Callable[[], Any]) -> str:
    """The one short error that a command ends with, status 2, without a traceback or pages of usage."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    before, message = printed.rsplit("error: ", 1)
    assert not [word for word in ("Traceback", "usage:", "error:") if word in before]
    assert len(message) < 1000
    return message.strip()


@pytest.fixture
def bad_files(run: Run, tmp_path: Path) -> None:
    """Data folders and weight files that are broken in different ways; fetch ``run`` first, it changes the folder."""
    for name, content in (
        ("corrupt", pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "fine_labels": [0] * 5})[:-40]),
        ("malicious", b"cos\nmkdir\n(S'trace'\ntR."),
    ):
        folder = tmp_path / name / "cifar-100-python"
        folder.mkdir(parents=True)
        (folder / "train").write_bytes(content)
        (folder / "test").write_bytes(content)
    torch.save(create_network("resnet8", 4).state_dict(), "four.pth")
    Path("cut.pth").write_bytes(Path("four.pth").read_bytes()[:5000])
    Path("syntax.yaml").write_text("model: {class_path: hsakd_pl.BaselineModule")


MISTAKES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "no data folder": ({"data": {"class_path": CIFAR, "init_args": {"root": "nowhere"}}}, [], ["nowhere", "root"]),
    "corrupt data": (
        {"data": {"class_path": CIFAR, "init_args": {"root": "corrupt"}}},
        [],
        ["train", "fetch it again"],
    ),
    "malicious data": (
        {"data": {"class_path": CIFAR, "init_args": {"root": "malicious"}}},
        [],
        ["mkdir", "do not use"],
    ),
    "unknown network": ({"model": {"init_args": {"network": "resnet9"}}}, [], ["'resnet9'", "did you mean"]),
    "wrong classes": ({"model": {"init_args": {"weights": "four.pth"}}}, [], ["four.pth", "(4, 64)", "(10, 64)"]),
    "cut weights": ({"model": {"init_args": {"weights": "cut.pth"}}}, [], ["cut.pth", "truncated"]),
    "no weights": ({"model": {"init_args": {"weights": "none.pth"}}}, [], ["none.pth", "does not exist", "check"]),
    "batch size": ({"data": {"init_args": {"batch_size": 0}}}, [], ["batch_size is 0", "at least 1"]),
    "small images": ({"model": {"init_args": {"network": "resnet18_imagenet"}}}, [], ["16 x 16", "32 pixels"]),
    "typo in model": ({"model": {"init_args": {"temprature": 3}}}, [], ["temprature", "BaselineModule", "help"]),
    "typo in data": ({"data": {"init_args": {"batchsize": 3}}}, [], ["batchsize", "DigitsDataModule", "help"]),
    "typo in trainer": ({"trainer": {"max_epoch": 3}}, [], ["max_epoch"]),
    "typo at the top": ({"modle": {"class_path": "hsakd_pl.BaselineModule"}}, [], ["modle"]),
    "wrong type": ({"model": {"init_args": {"lr": "fast"}}}, [], ["lr", "fast"]),
    "unknown class": ({"model": {"class_path": "hsakd_pl.Baseline"}}, [], ["hsakd_pl.Baseline"]),
    "no config": ({}, ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    "config syntax": ({}, ["--config", "syntax.yaml"], ["syntax.yaml"]),
    "no checkpoint": ({}, ["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
    "another checkpoint": ({}, ["--ckpt_path", "four.pth"], ["four.pth"]),
    "cut checkpoint": ({}, ["--ckpt_path", "cut.pth"], ["cut.pth"]),
    "no gpu": ({"trainer": {"accelerator": "gpu"}}, [], ["gpu", "trainer.accelerator"]),
    "diverges": ({"model": {"init_args": {"lr": 1e30}}}, [], ["NaN or infinite", "lower lr"]),
}


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(run: Run, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    if mistake == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    changes, options, words = MISTAKES[mistake]
    message = error_of(capsys, lambda: run("fit", *options, **changes))
    assert [word for word in words if word not in message] == []
    assert not Path("trace").exists()


def test_predict_asks_for_images(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "set --data.init_args.predict_dir" in error_of(capsys, lambda: run("predict"))


def test_main_is_a_script() -> None:
    script = Path(__file__).parents[1] / "main.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in ("fit", "validate", "test", "predict"))
