"""Test that callbacks which take part in training, and values that tuners found, belong to a run's protocol."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from small import error_of, run

from hsakd_pl import BaselineModule
from hsakd_pl.records.callbacks import takes_part, training_callbacks
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect

LIGHTNING = "pytorch_lightning.callbacks"
ACCUMULATION = {"class_path": f"{LIGHTNING}.GradientAccumulationScheduler", "init_args": {"scheduling": {0: 2}}}
STOPPING = {"class_path": f"{LIGHTNING}.EarlyStopping", "init_args": {"monitor": "val/acc", "patience": 9}}
AVERAGING = {"class_path": f"{LIGHTNING}.StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01}}
OWN = {"class_path": "test_training_callbacks.Own", "init_args": {"strength": 2}}
WATCHING = [{"class_path": f"{LIGHTNING}.{name}"} for name in ("RichProgressBar", "DeviceStatsMonitor")]
RATE_FINDER = {"class_path": f"{LIGHTNING}.LearningRateFinder", "init_args": {"num_training_steps": 30}}
SIZE_FINDER = {"class_path": f"{LIGHTNING}.BatchSizeFinder", "init_args": {"init_val": 4, "max_trials": 2}}


class Own(pl.Callback):
    """A user's callback, of which nobody knows what it does."""

    def __init__(self, strength: int = 1) -> None:
        self.strength = strength


class Configuring(BaselineModule):
    """Bring a callback along."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return [*super().configure_callbacks(), Own(3)]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def fit(*options: str, folder: str = "runs/a", used: list[Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """Train, and return the row."""
    limits = {"limit_val_batches": 1, "default_root_dir": folder, "callbacks": used}
    run("fit", *options, data={"init_args": {"batch_size": 16}}, trainer={**limits, **trainer})
    return json.loads(Path(folder, "result.json").read_text())


def test_observers_are_told_from_callbacks_that_take_part() -> None:
    observers = {
        *("BasePredictionWriter", "Checkpoint", "DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint"),
        *("ModelSummary", "OnExceptionCheckpoint", "ProgressBar", "RichModelSummary", "RichProgressBar"),
        *("TQDMProgressBar", "ThroughputMonitor", "Timer", "WeightCheckpoint"),
    }
    for name in dir(callbacks):
        kind = getattr(callbacks, name)
        if isinstance(kind, type):
            assert takes_part(object.__new__(kind)) == (name not in observers), name
    assert takes_part(Own())


@pytest.mark.parametrize("base", ["ModelCheckpoint", "Timer", "LearningRateMonitor", "TQDMProgressBar"])
def test_own_subclass_of_an_observer_takes_part(base: str) -> None:
    kind = type("Own", (getattr(callbacks, base),), {})
    assert takes_part(object.__new__(kind))


@pytest.mark.parametrize(
    "callback",
    [OWN, *(pytest.param(callback, marks=pytest.mark.nightly) for callback in (ACCUMULATION, STOPPING, AVERAGING))],
    ids=lambda callback: callback["class_path"].rpartition(".")[2],
)
def test_callback_added_or_left_out_on_resume_is_a_change(callback: dict[str, Any]) -> None:
    first = fit(used=[callback])
    after = fit("--ckpt_path", "last", max_epochs=2)
    (change,) = [change for change in after["changes"] if change["option"] == "trainer.callbacks"]
    assert callback["class_path"] in change["from"] and change["to"] is None and change["step"] > 0
    again = fit("--ckpt_path", "last", used=[callback], max_epochs=3)
    changed = [change["option"] for change in again["changes"]]
    assert changed.count("trainer.callbacks") == 2
    hashes = {each["protocol"]["hash"] for each in (first, after, again)}
    assert len(hashes) == 3


def test_unchanged_callbacks_are_no_change() -> None:
    first = fit(used=[STOPPING, OWN])
    again = fit("--ckpt_path", "last", used=[STOPPING, OWN], max_epochs=2)
    assert [change["option"] for change in again["changes"]] == ["trainer.max_epochs"]
    assert first["protocol"]["options"]["trainer.callbacks"] == again["protocol"]["options"]["trainer.callbacks"]


def test_callbacks_that_only_watch_share_a_row_with_none() -> None:
    fit(folder="runs/a")
    fit("--seed_everything", "1", folder="runs/b", used=WATCHING, logger="CSVLogger", enable_progress_bar=True)
    assert [len(group.rows) for group in groups(collect(Path("runs")))] == [2]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"{LIGHTNING}.EarlyStopping(monitor=val/loss, patience=3)", "EarlyStopping(monitor=val/loss"),
        ("mine.Own(strength=2); mine.other.Own(path=a/b.c)", "Own(strength=2); Own(path=a/b.c)"),
        ("mine.Own()", "Own()"),
    ],
)
def test_row_is_named_by_the_classes_of_its_callbacks(text: str, named: str) -> None:
    rows = []
    for number, used in enumerate((None, text)):
        protocol = {"hash": str(number), "options": {"trainer.callbacks": used}, "limited": {}, "epochs": 1}
        row = {"config": ["x.yaml"], "seed": 0, "epochs": 1, "last_val_acc": 0.5, "best_val_acc": 0.5, "test": None}
        rows.append(row | {"folder": str(number), "protocol": protocol})
    assert groups(rows)[1].name.startswith(f"x, callbacks {named}")


def test_callbacks_of_a_module_and_other_options_are_other_rows() -> None:
    fit(folder="runs/a")
    fit(folder="runs/b", used=[OWN])
    fit(folder="runs/c", used=[{**OWN, "init_args": {"strength": 5}}])
    model = {"class_path": "test_training_callbacks.Configuring"}
    run("fit", model=model, trainer={"default_root_dir": "runs/d", "limit_val_batches": 1})
    rows = collect(Path("runs"))
    assert len({row["protocol"]["hash"] for row in rows}) == 4
    assert rows[3]["protocol"]["options"]["trainer.callbacks"] == "test_training_callbacks.Own"
    assert "strength=5" in rows[2]["protocol"]["options"]["trainer.callbacks"]


def test_callbacks_given_in_python_are_named_by_their_class() -> None:
    assert training_callbacks([Own(), callbacks.Timer()], [(Own(), "x.Y()")]) == [
        "x.Y()",
        "test_training_callbacks.Own",
    ]


class Cosine(BaselineModule):
    """A module of a user with an optimizer and a schedule of its own."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)]


SGD = ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.1"]
FORGETFUL: dict[str, tuple[list[str], str]] = {
    "cosine": ([*SGD, "--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "2"], "CosineAnnealingLR"),
    "one cycle": (
        [*SGD, "--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1", "--lr_scheduler.total_steps", "4"],
        "OneCycleLR",
    ),
    "own module": (["--model", "test_training_callbacks.Cosine"], "CosineAnnealingLR"),
}


@pytest.mark.parametrize("name", FORGETFUL)
def test_schedule_that_forgets_the_found_rate_raises(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, schedule = FORGETFUL[name]
    short = {**RATE_FINDER, "init_args": {"num_training_steps": 3}}
    message = error_of(capsys, lambda: fit(*options, used=[short]))
    assert f"LearningRateFinder leaves {schedule} at the learning rate before the search" in message
    assert not list(Path("runs/a").iterdir())


def test_relative_schedule_of_the_command_line_is_accepted_after_a_search() -> None:
    options = [*SGD, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"]
    found = fit(*options, used=[RATE_FINDER], limit_train_batches=30)["protocol"]["found"]
    assert torch.load("runs/a/last.ckpt")["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(
        found["model.init_args.lr"] / 10
    )


def test_found_learning_rate_is_recorded_and_kept_on_resume(capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(used=[RATE_FINDER], limit_train_batches=30)
    found = first["protocol"]["lr"]
    assert found == first["protocol"]["options"]["model.init_args.lr"] != 0.01
    assert first["resumes"] == 0
    weights = torch.load("runs/a/last.ckpt", weights_only=True)
    assert weights["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(found)
    after = fit("--ckpt_path", "last", used=[RATE_FINDER], limit_train_batches=30, max_epochs=2)
    assert after["protocol"]["lr"] == found and after["resumes"] == 1
    assert [change["option"] for change in after["changes"]] == ["trainer.max_epochs"]
    message = error_of(
        capsys, lambda: run("fit", "--ckpt_path", "last", "--model.init_args.lr=0.3", trainer=_at("runs/a"))
    )
    assert message.startswith("model.init_args.lr is 0.3")


def test_found_batch_size_is_recorded_and_kept_on_resume() -> None:
    first = fit(used=[SIZE_FINDER], limit_train_batches=4, limit_val_batches=1)
    found = first["protocol"]["batch_size"]
    assert found == first["protocol"]["options"]["data.init_args.batch_size"] != 16
    after = fit("--ckpt_path", "last", used=[SIZE_FINDER], limit_train_batches=4, limit_val_batches=1, max_epochs=2)
    assert after["protocol"]["batch_size"] == found
    assert [change["option"] for change in after["changes"]] == ["trainer.max_epochs"]


def _at(folder: str) -> dict[str, Any]:
    return {"default_root_dir": folder, "max_epochs": 3}
