"""Test that an option means what it says: its order, its whole name, and values that make no sense together."""

import sys
from pathlib import Path

import pytest
from pytorch_lightning import callbacks
from small import error_of, loader, make, run, trainer

from hsakd_pl.cli.arguments import check_order, check_used
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError

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
        (("--trainer.min_steps=9", "--trainer.max_steps=2"), "min_steps 9 has no effect: trainer.max_steps 2 is less"),
        (("--trainer.overfit_batches=1", "--trainer.limit_val_batches=1"), "trainer.overfit_batches replaces it"),
        (("--trainer.fast_dev_run=true", "--trainer.max_epochs=2"), "max_epochs has no effect: trainer.fast_dev_run"),
        (("--save_every_minutes=2", "--trainer.fast_dev_run=true"), "save_every_minutes has no effect: trainer.fast"),
        (("--save_every_minutes=2", "--trainer.barebones=true"), "save_every_minutes has no effect: trainer.barebones"),
        (
            ("--save_every_minutes=2", "--trainer.enable_checkpointing=false"),
            "--save_every_minutes has no effect without trainer.enable_checkpointing",
        ),
        (
            ("--trainer.gradient_clip_algorithm=value",),
            "--trainer.gradient_clip_algorithm has no effect without trainer.gradient_clip_val",
        ),
    ],
)
def test_replaced_option_raises(options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(capsys, lambda: run("fit", *options))


@pytest.mark.parametrize("seed", ["false", "-1", str(2**32)])
def test_fit_without_a_valid_seed_raises(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed_everything is" in error_of(capsys, lambda: run("fit", "--seed_everything", seed))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_steps": 3}, "trainer.min_steps 3 has no effect: the fit has 2 steps"),
        ({"min_epochs": 2, "max_steps": 2, "max_epochs": -1}, "min_epochs 2 has no effect: the fit has 2 steps"),
        ({"min_steps": 9, "min_epochs": 1, "max_epochs": 3}, "min_steps 9 has no effect: the fit has 6 steps"),
    ],
    ids=["steps", "epochs", "both"],
)
def test_minimum_beyond_the_end_of_a_fit_raises(
    options: dict[str, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, lambda: run("fit", trainer=options))
    assert not Path("runs/BaselineModule/last.ckpt").exists()


def test_minimum_within_a_fit_is_accepted() -> None:
    run("fit", trainer={"min_steps": 2, "min_epochs": 1})


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("test", "--trainer.max_epochs=3"),
        ("test", "--trainer.limit_predict_batches=1"),
        ("test", "--save_every_minutes=3"),
        ("test", "--optimizer=torch.optim.SGD"),
        ("test", "--model.init_args.milestones=[1]"),
        ("test", "--model.init_args.optimizer.init_args.lr=1"),
        ("test", "--model.teacher_weights=file.pt"),
        ("test", "--data.init_args.augment=false"),
        ("validate", "--data.init_args.predict_dir=photos"),
        ("validate", "--trainer.limit_test_batches=1"),
        ("predict", "--trainer.limit_test_batches=1"),
        ("predict", "--return_predictions=true"),
    ],
)
def test_option_that_an_evaluation_does_not_use_raises(command: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option.partition('=')[0]} has no effect in {command}"):
        check_used([command, "--config", "file.yaml", option], command, "last.ckpt")


def test_command_line_of_a_test_with_a_training_option_raises(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, lambda: run("test", "--model.weights", "random", "--trainer.max_epochs", "2"))
    assert message.startswith("--trainer.max_epochs has no effect in test")


def test_weights_next_to_a_checkpoint_raise(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("fit")
    checkpoint = str(folder / "last.ckpt")
    message = error_of(capsys, lambda: run("test", "--model.weights", "random", "--ckpt_path", "last"))
    assert message.startswith("--model.weights has no effect: ckpt_path replaces it")
    run("test", "--ckpt_path", "last", model={"init_args": {"weights": "random"}})  # as config.yaml may have it
    run("test", "--model.weights", checkpoint)


def test_sweep_tests_with_the_options_of_its_fits() -> None:
    folder = run("fit")
    options = ["--trainer.max_epochs=2", "--trainer.default_root_dir=sweep", "--model.init_args.weights"]
    main(["sweep", "--seeds", "1", "--config", "config.yaml", *options, str(folder / "last.ckpt")])
    assert Path("sweep/seed1/test.json").exists()


def test_sweep_without_test_batches_trains_only() -> None:
    Path("config.yaml").write_text(FILE)
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_test_batches=0"]
    main(["sweep", "--seeds", "1", "--config", "config.yaml", *options, "--trainer.default_root_dir=sweep"])
    assert Path("sweep/seed1/result.json").exists() and not Path("sweep/seed1/test.json").exists()
