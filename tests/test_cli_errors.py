"""Test that each mistake on the command line ends in one error with culprit and remedy."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import hsakd
from small import error_of, run

from hsakd_pl import DigitsDataModule, create_network
from hsakd_pl.cli.main import main

CIFAR = "hsakd_pl.CIFAR100DataModule"
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 2}}


@pytest.fixture(autouse=True)
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a folder with broken data and weight files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    for name, content in (
        ("corrupt", pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "fine_labels": [0] * 5})[:-40]),
        ("malicious", b"cos\nmkdir\n(S'trace'\ntR."),
    ):
        folder = Path(name, "cifar-100-python")
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
    "batch size": ({"data": {"init_args": {"batch_size": 0}}}, [], ["batch_size", "at least 1, got 0"]),
    "small images": ({"model": {"init_args": {"network": "resnet18_imagenet"}}}, [], ["16 x 16", "32 pixels"]),
    "typo in model": ({"model": {"init_args": {"temprature": 3}}}, [], ["temprature", "BaselineModule", "help"]),
    "typo in data": ({"data": {"init_args": {"batchsize": 3}}}, [], ["batchsize", "DigitsDataModule", "help"]),
    "typo in trainer": ({"trainer": {"max_epoch": 3}}, [], ["max_epoch"]),
    "typo at the top": ({"modle": {"class_path": "hsakd_pl.BaselineModule"}}, [], ["modle"]),
    "wrong type": ({"model": {"init_args": {"lr": "fast"}}}, [], ["lr", "fast"]),
    "unknown class": ({"model": {"class_path": "hsakd_pl.Baseline"}}, [], ["hsakd_pl.Baseline"]),
    "no optimizer": ({"lr_scheduler": COSINE}, [], ["without optimizer", "model.init_args.lr_scheduler"]),
    "function for a model": ({"model": {"class_path": "os.system"}}, [], ["model: os.system is not a class"]),
    "function for data": ({}, ["--data", "os.system"], ["data: os.system is not a class"]),
    "instance for a logger": ({"trainer": {"logger": {"class_path": "os.environ"}}}, [], ["logger", "not a class"]),
    "function for a number": ({"trainer": {"max_epochs": {"class_path": "os.system"}}}, [], ["max_epochs", "int"]),
    "function for a file": ({"model": {"init_args": {"weights": {"class_path": "os.system"}}}}, [], ["weights", "str"]),
    "path of a folder": (
        {"trainer": {"callbacks": [{"class_path": "../input"}]}},
        [],
        ["../input is not an import path"],
    ),
    "two dots": (
        {"model": {"class_path": "hsakd_pl..BaselineModule"}},
        [],
        ["hsakd_pl..BaselineModule is not an import"],
    ),
    "a dot": ({"data": {"class_path": ".Data"}}, [], [".Data is not a known class"]),
    "main program": ({"model": {"class_path": "__main__.Nothing"}}, [], ["__main__.Nothing does not exist"]),
    "no config": ({}, ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    "config syntax": ({}, ["--config", "syntax.yaml"], ["syntax.yaml"]),
    "no checkpoint": ({}, ["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
    "another checkpoint": ({}, ["--ckpt_path", "four.pth"], ["four.pth"]),
    "cut checkpoint": ({}, ["--ckpt_path", "cut.pth"], ["cut.pth"]),
    "no gpu": ({"trainer": {"accelerator": "gpu"}}, [], ["gpu", "trainer.accelerator"]),
    "sync_batchnorm": ({"trainer": {"sync_batchnorm": True}}, [], ["sync_batchnorm needs GPUs"]),
    "diverges": ({"model": {"init_args": {"lr": 1e30}}}, [], ["NaN or infinite", "lower lr"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_cli_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    if mistake == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    changes, options, words = MISTAKES[mistake]
    message = error_of(capsys, lambda: run("fit", *options, **changes))
    assert [word for word in words if word not in message] == []
    assert not Path("trace").exists()


def test_predict_without_images_names_predict_dir(capsys: pytest.CaptureFixture[str]) -> None:
    assert "set --data.init_args.predict_dir" in error_of(
        capsys, lambda: run("predict", model={"init_args": {"weights": "random"}})
    )


def test_data_module_without_num_classes_raises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DigitsDataModule, "num_classes")
    assert "DigitsDataModule has no num_classes" in error_of(capsys, lambda: run("fit"))


USERS_CODE = """
import pytorch_lightning as pl
from hsakd_pl import BaselineModule, DigitsDataModule


class Module(BaselineModule):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        open("lables.txt")


class Data(DigitsDataModule):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.names["one"]

    names = {}


class Callback(pl.Callback):
    def on_train_start(self, trainer, module):
        import a_missing_package


class Counting(DigitsDataModule):
    @property
    def num_classes(self):
        raise RuntimeError("no classes")

    @num_classes.setter
    def num_classes(self, value):
        pass


class OwnCallback(pl.Callback):
    def __init__(self):
        open("lables.txt")


class OwnLogger(pl.loggers.CSVLogger):
    def __init__(self):
        open("lables.txt")
"""


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (FileNotFoundError, {"model": {"class_path": "users_code.Module"}}),
        (KeyError, {"data": {"class_path": "users_code.Data"}}),
        (ModuleNotFoundError, {"trainer": {"callbacks": [{"class_path": "users_code.Callback"}]}}),
        (FileNotFoundError, {"trainer": {"callbacks": {"class_path": "users_code.OwnCallback"}}}),
        (FileNotFoundError, {"trainer": {"logger": [{"class_path": "users_code.OwnLogger"}]}}),
        (RuntimeError, {"data": {"class_path": "users_code.Counting"}}),
        (NameError, {"model": {"class_path": "broken_code.Module"}}),
    ],
    ids=[
        "module",
        "data module",
        "callback",
        "callback without a list",
        "logger in a list",
        "property that jsonargparse asks for",
        "import",
    ],
)
def test_error_in_users_code_keeps_its_traceback(
    error: type[Exception], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("users_code.py").write_text(USERS_CODE)
    Path("broken_code.py").write_text("undefined_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_code", raising=False)
    with pytest.raises(error) as raised:
        run("fit", **changes)
    places = {Path(entry.path).name for entry in raised.traceback}
    assert places & {"users_code.py", "broken_code.py"}


UNTYPED_MODULE = """
from hsakd_pl import StudentModule


class Untyped(StudentModule):
    def __init__(self, network, teacher, own_weight=1.0, **options):
        super().__init__(network, teacher, **options)
"""


def test_forgotten_option_without_a_type_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("untyped_code.py").write_text(UNTYPED_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "untyped_code", raising=False)
    module = {"class_path": "untyped_code.Untyped", "init_args": {"teacher_weights": "random"}}
    message = error_of(capsys, lambda: run("fit", model=module))
    assert message == "model.teacher is missing: Untyped needs it; set --model.teacher"
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "untyped_code.Untyped"])
    assert capsys.readouterr().out.count("(required") == 2


def test_missing_module_of_named_class_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("others_code.py").write_text("import a_missing_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    callback = {"class_path": "others_code.Callback"}
    message = error_of(capsys, lambda: run("fit", trainer={"callbacks": [callback]}))
    assert message.startswith("trainer.callbacks: others_code.Callback cannot be imported: No module named 'a_missing_")


def test_error_in_users_code_exits_with_status_1() -> None:
    Path("users_code.py").write_text(USERS_CODE)
    words = ["fit", "--model", "users_code.Module", "--model.network", "resnet8", "--data", "DigitsDataModule"]
    done = hsakd(*words)
    assert done.returncode == 1
    assert 'users_code.py", line 9, in __init__' in done.stderr
    assert done.stderr.splitlines()[-1] == "FileNotFoundError: [Errno 2] No such file or directory: 'lables.txt'"


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--model", "StudentModul", "--debug"],
        ["--debug", "report", "nowhere"],
        ["bench", "--debug", "nowhere.csv", "--list"],
    ],
    ids=" ".join,
)
def test_debug_shows_the_traceback_of_a_usage_error(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert "Traceback (most recent call last)" in printed and "raise UsageError" in printed
    message = error_of(capsys, lambda: main([arg for arg in args if arg != "--debug"]))
    assert printed.endswith(f"error: {message}\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": "EarlyStopping"}, "trainer.callbacks.monitor is missing: EarlyStopping needs it"),
        ({"devices": "two"}, "trainer.devices: two is not a number of devices: "),
        ({"devices": "0,1"}, "trainer.devices: 0,1 is not a number of processes, "),
        ({"precision": "17"}, "trainer.precision: 17 is not valid; expected "),
    ],
    ids=str,
)
def test_wrong_trainer_options_are_one_line(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, lambda: run("fit", trainer=changes)).startswith(message)
