"""Test that an option means what it says: its order, its whole name, and values that make no sense together."""

import sys
from pathlib import Path

import pytest
from pytorch_lightning import callbacks
from small import error_of, loader, make, run, trainer

from hsakd_pl.cli.arguments import check_order
from hsakd_pl.cli.main import main

FILE = """
seed_everything: 0
model: {class_path: hsakd_pl.BaselineModule, init_args: {network: resnet8, lr: 0.05}}
data: {class_path: hsakd_pl.DigitsDataModule}
trainer: {max_epochs: 8, accelerator: cpu}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    Path("file.yaml").write_text(FILE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.max_epochs", "3"], "sets trainer.max_epochs to 8"),
        (["--trainer.max_epochs=3"], "sets trainer.max_epochs to 8"),
        (["--trainer", "{max_epochs: 3}"], "sets trainer.max_epochs to 8"),
        (["--model.init_args.lr=0.1"], "sets model.lr to 0.05"),
        (["--model.network", "vgg8"], "sets model.network to resnet8"),
        (["--model", "hsakd_pl.TeacherModule"], "sets model to hsakd_pl.BaselineModule"),
        (["--data=ImageFolderDataModule"], "sets data to hsakd_pl.DigitsDataModule"),
        (["--seed_everything=3"], "sets seed_everything to 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", [["fit"], ["sweep", "--seeds", "0"]], ids=["fit", "sweep"])
def test_option_before_a_configuration_that_replaces_it_raises(
    command: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, lambda: main([*command, *options, "--config", "file.yaml"]))
    assert "has no effect" in message and (said in message or "--seeds decides" in message)


@pytest.mark.parametrize(
    "args",
    [
        ["--config", "file.yaml", "--trainer.max_epochs=3"],
        ["--trainer.max_epochs=8", "--config=file.yaml"],
        ["--model=BaselineModule", "-c", "file.yaml"],
        ["--trainer.limit_train_batches=2", "--config", "file.yaml"],
        ["--config", "file.yaml", "--config", "file.yaml"],
        ["--model.weights", "@odd: name", "--config", "file.yaml"],
        ["--config", "missing.yaml"],
    ],
    ids=" ".join,
)
def test_options_in_order_are_accepted(args: list[str]) -> None:
    check_order(["fit", *args])


@pytest.mark.parametrize(
    "option",
    ["--trainer.max_epoch=3", "--trainer.max_epo=3", "--model.init_args.l=1", "--data.batch=3", "--seed=3", "--conf=a"],
)
def test_abbreviated_option_raises(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, lambda: main(["fit", "--config", "file.yaml", option]))
    assert message.startswith("there is no option")


@pytest.mark.parametrize("option", ["--forma", "--htm", "--plo"])
def test_abbreviated_option_of_a_command_raises(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments" in error_of(capsys, lambda: main(["report", "runs", option, "md"]))


@pytest.mark.parametrize("precision", ["16-true", "16-mixed", "16"])
def test_half_precision_on_a_cpu_raises(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, lambda: run("fit", f"--trainer.precision={precision}"))
    assert message.startswith(f"trainer.precision: {precision} makes a CPU") and "32-true" in message


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning 2.6 brought it")
@pytest.mark.parametrize(("options", "is_slow"), [({}, True), ({"decay": 0.97}, True), ({"decay": 0.1}, False)])
def test_moving_average_that_is_too_slow_is_logged(
    options: dict[str, float], is_slow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    average = callbacks.EMAWeightAveraging(**options)
    trainer(max_epochs=2, callbacks=[average]).fit(make("baseline"), loader())
    assert ("is too slow for 4 updates" in caplog.text) == is_slow


ADAM = ("--model.init_args.optimizer", "torch.optim.Adam")
CONSTANT = ("--model.init_args.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR")
SGD = ("--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((*ADAM, "--model.init_args.momentum", "0.5"), "--model.init_args.momentum has no effect: model.optimizer"),
        (("--model.lr=0.5", *ADAM), "--model.lr has no effect: model.optimizer replaces it"),
        ((*CONSTANT, "--model.init_args.milestones", "[1]"), "milestones has no effect: model.lr_scheduler"),
        ((*SGD, "--model.init_args.weight_decay", "0"), "weight_decay has no effect: optimizer replaces it"),
        ((*SGD, *CONSTANT), "lr_scheduler has no effect: optimizer replaces it"),
        (("--trainer.min_epochs", "3"), "trainer.min_epochs 3 has no effect: trainer.max_epochs 1 is less"),
    ],
)
def test_replaced_option_raises(options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(capsys, lambda: run("fit", *options))


@pytest.mark.parametrize("seed", ["false", "-1", str(2**32)])
def test_fit_without_a_valid_seed_raises(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed_everything is" in error_of(capsys, lambda: run("fit", "--seed_everything", seed))
    assert not Path("runs").exists()
