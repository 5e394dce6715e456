"""Test that a fit of any length, ended in any way, has a true row, and resumes at the next batch."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import error_of, history, run
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl.cli.main import main
from hsakd_pl.records.formats import read_row

LIMITS = {"limit_train_batches": 4, "limit_val_batches": 1}  # 4 steps per epoch
PARTS = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers")


class Stop(pl.Callback):
    """Set ``trainer.should_stop`` in a hook, after a number of steps."""

    def __init__(self, hook: str, steps: int) -> None:
        self.hook, self.steps = hook, steps

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        setattr(self, self.hook, self._stop)

    def _stop(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.should_stop = True


def stop(hook: str, steps: int) -> dict[str, Any]:
    return {"callbacks": [{"class_path": "test_budgets.Stop", "init_args": {"hook": hook, "steps": steps}}]}


def early_stopping(**options: Any) -> dict[str, Any]:
    stops_after_two = {"monitor": "val/loss", "patience": 0, "min_delta": 100.0}
    callback = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": stops_after_two | options}
    return {"callbacks": [callback]}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def fit(*options: str, folder: str = "run", **trainer: Any) -> dict[str, Any]:
    """Train and return the row."""
    run("fit", *options, trainer={**LIMITS, "max_epochs": 2, "default_root_dir": folder, **trainer})
    return read_row(Path(folder, "result.json"))


def last(folder: str | Path) -> dict[str, Any]:
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)


_whole: dict[str, Path] = {}


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that returns the folder of an uninterrupted run of 2 epochs with further options."""

    def make(options: dict[str, Any]) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in _whole:
            folder = tmp_path_factory.mktemp("whole")
            fit(folder=str(folder), **options)
            _whole[key] = folder
        return _whole[key]

    return make


further = pytest.mark.nightly
TIMER = {"class_path": "pytorch_lightning.callbacks.Timer", "init_args": {"duration": {"microseconds": 1}}}
# Options that stop the fit, options of the resumed fit, options of both and of the whole fit, and steps at the stop
STOPS: dict[str, Any] = {
    "max_steps inside an epoch": ({"max_steps": 5}, {}, {}, 5),
    "max_steps at an epoch's end": ({"max_steps": 4}, {"max_steps": 8}, {}, 4),
    "a step": (stop("on_train_batch_end", 6), {}, {}, 6),
    "a validation inside an epoch": (stop("on_validation_end", 6), {}, {"val_check_interval": 2}, 6),
    "max_steps in the first epoch": ({"max_steps": 3, "max_epochs": -1}, {}, {}, 3),
    "time": ({"callbacks": [TIMER]}, {}, {}, 1),
    "the start of a batch": (stop("on_train_batch_start", 5), {}, {}, 6),
    "the start of a validation": (stop("on_validation_start", 2), {}, {"val_check_interval": 0.5}, 2),
    "accumulated gradients": (stop("on_train_batch_start", 1), {}, {"accumulate_grad_batches": 2}, 2),
    "validations across epochs": ({"max_steps": 5}, {}, {"val_check_interval": 3, "check_val_every_n_epoch": None}, 5),
    "no validation before": ({"max_steps": 3}, {}, {"check_val_every_n_epoch": 2}, 3),
}
IN_CI = [*STOPS][:4]


@pytest.mark.parametrize("name", [name if name in IN_CI else pytest.param(name, marks=further) for name in STOPS])
def test_stopped_fit_has_true_row_and_resumes_bitwise(name: str, whole: Any) -> None:
    cut, rest, common, steps = STOPS[name]
    row = fit(**common | cut)
    assert row["steps"] == steps
    assert row["finished"] == ("max_steps" in cut)  # the planned length; a callback's stop is not
    assert row["last_val_step"] is None or row["last_val_step"] <= steps
    resumed = fit("--ckpt_path", "last", **common | rest)
    expected = whole(common)
    assert {part: last("run")[part] for part in PARTS[:2]} == {part: last(expected)[part] for part in PARTS[:2]}
    for part in PARTS[2:]:
        torch.testing.assert_close(last("run")[part], last(expected)[part], rtol=0, atol=0)
    assert history("run") == history(expected)
    whole_row = read_row(expected / "result.json")
    for field in ("finished", "epochs", "steps", "planned_steps", "last_val_acc", "last_val_step", "metrics"):
        assert resumed[field] == whole_row[field]


@pytest.mark.parametrize(
    ("options", "epochs", "planned", "expected"),
    [
        ({"max_steps": 2, "max_epochs": None}, 0, 2, True),
        pytest.param(early_stopping() | {"max_epochs": 5, "val_check_interval": 2}, 1, 20, True, marks=further),
        pytest.param(early_stopping(stopping_threshold=1e9) | {"max_epochs": -1}, 1, None, True, marks=further),
        pytest.param({"max_steps": 2, "min_epochs": 1, "max_epochs": -1}, 0, 2, True, marks=further),
        pytest.param({"max_epochs": 1, "min_steps": 2, "accumulate_grad_batches": 3}, 1, 2, True, marks=further),
    ],
    ids=["max_steps", "early stopping", "threshold", "min_epochs", "min_steps"],
)
def test_every_budget_gives_a_readable_row(
    options: dict[str, Any], epochs: int, planned: int | None, expected: bool
) -> None:
    row = fit(**options)
    assert (row["epochs"], row["planned_steps"], row["finished"]) == (epochs, planned, expected)
    assert row["steps"] == row["planned_steps"] or "callbacks" in options


def test_early_stopped_run_trains_no_further_when_resumed(caplog: pytest.LogCaptureFixture) -> None:
    options = early_stopping() | {"max_epochs": 5, "limit_train_batches": 2}
    fit(**options)
    before = Path("run/result.json").read_bytes(), Path("run/last.ckpt").read_bytes()
    fit("--ckpt_path", "last", **options)
    assert (Path("run/result.json").read_bytes(), Path("run/last.ckpt").read_bytes()) == before
    assert "early stopping ended the run after 4 of 10 steps" in caplog.text


class Fail(pl.Callback):
    """Raise an error of its own after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise ZeroDivisionError


@pytest.mark.parametrize(
    ("cut", "saved_steps", "epochs"),
    [
        (stop("on_train_batch_end", 6), 6, 1),
        (stop("on_train_epoch_end", 8), 8, 2),
        pytest.param(
            {"callbacks": [{"class_path": "test_budgets.Fail", "init_args": {"steps": 6}}]}, 4, 1, marks=further
        ),
        pytest.param(
            {"callbacks": [{"class_path": "test_budgets.Fail", "init_args": {"steps": 9}}]}, 8, 2, marks=further
        ),
    ],
    ids=["inside an epoch", "after an epoch", "by an error", "by an error in the second epoch"],
)
def test_extended_run_that_is_interrupted_is_unfinished(cut: dict[str, Any], saved_steps: int, epochs: int) -> None:
    assert fit(max_epochs=1)["finished"]
    with suppress(ZeroDivisionError):
        fit("--ckpt_path", "last", **cut, max_epochs=3)
    row = read_row(Path("run/result.json"))
    assert (row["finished"], row["planned_steps"], row["epochs"]) == (False, 12, epochs)
    assert last("run")["global_step"] == saved_steps
    assert row["weights_digest"] is None
    row = fit("--ckpt_path", "last", max_epochs=3)
    assert (row["finished"], row["steps"], row["epochs"]) == (True, 12, 3)


def test_extension_that_trains_nothing_leaves_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(max_epochs=1, callbacks=[TIMER | {"init_args": {"duration": {"hours": 1}}}])["finished"]
    before = Path("run/result.json").read_bytes()
    error_of(capsys, lambda: fit("--ckpt_path", "last", max_epochs=2, callbacks=[TIMER]))
    assert Path("run/result.json").read_bytes() == before


NOTHING_TO_TRAIN: dict[str, tuple[dict[str, Any], str]] = {
    "no batches": ({"limit_train_batches": 0}, "trainer.limit_train_batches is 0"),
    "no part of an epoch": ({"limit_train_batches": 0.0}, "trainer.limit_train_batches is 0"),
    "no epochs": ({"max_epochs": 0}, "trainer.max_epochs is 0"),
    "no steps": ({"max_steps": 0}, "trainer.max_steps is 0"),
    "no checkpoints either": ({"limit_train_batches": 0, "enable_checkpointing": False}, "limit_train_batches is 0"),
    "barebones": ({"max_epochs": 0, "barebones": True}, "trainer.max_epochs is 0"),
    "a callback": (stop("on_train_start", 0), "a callback stopped it before its first step"),
}


@pytest.mark.parametrize("name", NOTHING_TO_TRAIN)
def test_fit_without_anything_to_train_raises(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, said = NOTHING_TO_TRAIN[name]
    assert said in error_of(capsys, lambda: run("fit", trainer=LIMITS | {"default_root_dir": "run"} | options))
    assert not Path("run/result.json").exists() and not Path("run/last.ckpt").exists()


class Empty(pl.LightningDataModule):
    """Provide a training loader without batches."""

    num_classes = 10

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)))


def test_fit_on_an_empty_loader_raises(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "test_budgets.Empty", "--model.network", "resnet8", "--trainer.accelerator", "cpu"]
    message = error_of(capsys, lambda: main(["fit", "--model", "hsakd_pl.BaselineModule", *options]))
    assert "the training loader has no batches" in message


def test_unfinished_run_without_batches_raises_when_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    fit(**stop("on_train_batch_end", 2))
    before = Path("run/result.json").read_bytes()
    message = error_of(capsys, lambda: fit("--ckpt_path", "last", limit_train_batches=0))
    assert "the run has 2 of 8 steps, in 0 complete epochs, but trainer.limit_train_batches is 0" in message
    assert Path("run/result.json").read_bytes() == before


def test_trial_has_batches_whatever_the_limits() -> None:
    run("fit", trainer={"limit_train_batches": 0, "fast_dev_run": True, "default_root_dir": "trial"})
    assert not Path("trial").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_of_no_batches_raises(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = {"validate": "val"}.get(command, command)
    limit = f"limit_{option}_batches"
    message = error_of(
        capsys, lambda: run(command, "--model.weights", "random", trainer={limit: 0, "limit_train_batches": 1.0})
    )
    assert message.startswith(f"trainer.{limit} is 0")


NEVER_VALIDATED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"check_val_every_n_epoch": 3}, "check_val_every_n_epoch 3"),
    "batches": ({"check_val_every_n_epoch": None, "val_check_interval": 9}, "val_check_interval 9"),
    "epochs of steps": (
        {"check_val_every_n_epoch": 3, "max_epochs": -1, "max_steps": 8},
        "check_val_every_n_epoch 3",
    ),
    "batches of steps": (
        {"check_val_every_n_epoch": None, "val_check_interval": 9, "accumulate_grad_batches": 2}
        | {"max_epochs": -1, "max_steps": 4},
        "val_check_interval 9",
    ),
}


@pytest.mark.parametrize("name", NEVER_VALIDATED)
def test_validation_after_the_end_of_a_fit_raises(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, said = NEVER_VALIDATED[name]
    message = error_of(capsys, lambda: fit(**options))
    assert f"trainer.{said} has no effect: the fit ends before its first validation" in message
    assert not Path("run/last.ckpt").exists() and not Path("run/config.yaml").exists()


def test_validation_in_the_last_epoch_or_switched_off_is_accepted() -> None:
    assert fit(check_val_every_n_epoch=2)["last_val_step"] == 8
    assert fit(check_val_every_n_epoch=9, limit_val_batches=0, folder="off")["last_val_step"] is None
    run("fit", trainer={"check_val_every_n_epoch": 9, "fast_dev_run": True})


def test_finished_fit_that_was_never_validated_says_so(caplog: pytest.LogCaptureFixture) -> None:
    fit(max_steps=3)
    assert "ended before its first validation" in caplog.text
    caplog.clear()
    fit("--ckpt_path", "last", max_steps=4)
    fit(max_epochs=1, limit_val_batches=0, folder="off")
    assert "ended before its first validation" not in caplog.text


def test_used_up_time_is_an_error_when_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not fit(callbacks=[TIMER])["finished"]
    message = error_of(capsys, lambda: fit("--ckpt_path", "last", callbacks=[TIMER]))
    assert "1 of 8 steps" in message and "trainer.max_time" in message
    assert not read_row(Path("run/result.json"))["finished"]


def test_metrics_of_a_validation_stay_in_its_epoch() -> None:
    row = fit(max_epochs=3, check_val_every_n_epoch=2, limit_train_batches=1)
    assert ["val/acc" in epoch for epoch in history("run")] == [False, True, False]
    assert (row["last_val_step"], row["steps"]) == (2, 3)


def test_row_of_earlier_version_without_a_number_of_epochs_is_read(tmp_path: Path) -> None:
    accuracies = {"last_val_acc": 0.5, "best_val_acc": 0.5}
    protocol = {"hash": "0", "options": {}, "limited": {}, "epochs": -1}
    row = {"config": [], "images_per_second": 1.0, "seconds": 1.0, "protocol": protocol, **accuracies}
    Path("result.json").write_text(json.dumps(row))
    assert read_row(Path("result.json"))["protocol"]["epochs"] is None
