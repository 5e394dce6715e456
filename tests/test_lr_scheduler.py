"""Test custom optimizers and schedulers in Python, in checkpoints and by class path."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import cli
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from small import BATCH, MODULES, history, loader, make, run, trainer
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from hsakd_pl import BaselineModule
from hsakd_pl.errors import UsageError

COSINE = [0.04 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]


class Rates(pl.Callback):
    """Record the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates += [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", MODULES)
def test_lr_scheduler_resumes_from_checkpoint(tmp_path: Path, kind: str) -> None:
    recorder, schedule = Rates(), partial(CosineAnnealingLR, T_max=4)
    module = make(kind, lr=0.04, lr_scheduler=schedule)
    trainer(tmp_path, max_epochs=2, callbacks=[recorder]).fit(module, loader())
    last = tmp_path / "last.ckpt"
    assert "lr_scheduler" not in torch.load(last, weights_only=True)["hyper_parameters"]
    assert type(module).load_from_checkpoint(last).lr_scheduler is None
    again = type(module).load_from_checkpoint(last, lr_scheduler=schedule)
    trainer(max_epochs=4, callbacks=[recorder]).fit(again, loader(), ckpt_path=last)
    assert recorder.rates == pytest.approx([rate for rate in COSINE for _ in range(2)])


@pytest.mark.parametrize("kind", ["teacher", "probe"])
def test_frozen_parameters_stay_out_of_the_optimizer(kind: str) -> None:
    options: dict[str, Any] = {"freeze_backbone": True, "weights": "random"} if kind == "teacher" else {}
    module = make(kind, lr_scheduler=partial(CosineAnnealingLR, T_max=4), **options)
    configured = module.configure_optimizers()
    trained = [parameter for group in configured["optimizer"].param_groups for parameter in group["params"]]
    expected = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert 0 < len(expected) < len(list(module.parameters()))
    assert [id(parameter) for parameter in trained] == [id(parameter) for parameter in expected]


@pytest.mark.parametrize(
    ("schedule", "metric"),
    [(ReduceLROnPlateau, "val/loss"), (partial(cli.ReduceLROnPlateau, monitor="train/loss"), "train/loss")],
)
def test_lr_scheduler_may_monitor_a_metric(schedule: Any, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[float] = []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, metrics: watched.append(float(metrics)))
    fit = trainer()
    fit.fit(make("baseline", lr=0.01, lr_scheduler=schedule), loader(), loader())
    assert watched == [float(fit.callback_metrics[metric])]


def test_lr_scheduler_with_warmup_raises() -> None:
    with pytest.raises(UsageError, match=r"warmup_epochs is 2: lr_scheduler replaces the warm-up"):
        make("baseline", lr_scheduler=partial(CosineAnnealingLR, T_max=4), warmup_epochs=2)


@pytest.mark.parametrize("kind", MODULES)
def test_custom_optimizer_trains(tmp_path: Path, kind: str) -> None:
    make_optimizer, recorder = partial(AdamW, lr=0.002, weight_decay=0.0), Rates()
    module = make(kind, optimizer=make_optimizer, lr_scheduler=partial(CosineAnnealingLR, T_max=4))
    run = trainer(tmp_path, max_epochs=2, callbacks=[recorder])
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    assert type(optimizer) is AdamW
    assert recorder.rates[::2] == pytest.approx([0.002, 0.002 * (1 + math.cos(math.pi / 4)) / 2])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert not {"optimizer", "lr", "momentum", "nesterov", "weight_decay"} & set(saved)  # none took effect
    again = type(module).load_from_checkpoint(tmp_path / "last.ckpt", optimizer=make_optimizer)
    assert type(again.configure_optimizers()["optimizer"]) is AdamW


def test_optimizer_by_class_path_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main.py"])
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002}}
    folder = run("fit", model={"init_args": {"optimizer": adam, "milestones": [1]}}, trainer={"max_epochs": 2})
    assert [row["lr"] for row in history(folder)] == pytest.approx([0.002, 0.0002])


def test_lr_scheduler_by_class_path_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main.py"])
    cosine = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 4}}
    options: dict[str, Any] = {"init_args": {"lr": 0.04, "lr_scheduler": cosine}}
    folder = run("fit", model=options, trainer={"max_epochs": 2})
    run("fit", "--ckpt_path", "last", model=options, trainer={"max_epochs": 4})
    assert [row["lr"] for row in history(folder)] == pytest.approx(COSINE)
    schedule = partial(CosineAnnealingLR, T_max=4)
    assert BaselineModule.load_from_checkpoint(folder / "last.ckpt").lr_scheduler is None
    assert BaselineModule.load_from_checkpoint(folder / "last.ckpt", lr_scheduler=schedule).lr_scheduler is schedule


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({"max_steps": 3}, 1, [1 / 2, 1, 1]),
        ({"max_steps": 3, "max_epochs": -1}, 2, [1 / 4, 2 / 4, 3 / 4]),
        ({"callbacks": [GradientAccumulationScheduler({0: 2, 1: 1})]}, 2, [1 / 3, 2 / 3, 1, 1, 1]),
        ({"accumulate_grad_batches": 2}, 2, [1 / 2, 1, 1]),
        ({}, 5, [1 / 10, 2 / 10, 3 / 10, 4 / 10, 5 / 10, 6 / 10]),
    ],
    ids=["max_steps", "max_steps alone", "scheduled accumulation", "accumulation", "beyond the fit"],
)
def test_warmup_takes_its_epochs(options: dict[str, Any], epochs: int, expected: list[float]) -> None:
    rates = Rates()
    options = {"max_epochs": 3, **options, "callbacks": [*options.get("callbacks", []), rates]}
    trainer(**options).fit(make("baseline", lr=1.0, nesterov=False, warmup_epochs=epochs), loader())
    assert rates.rates == pytest.approx(expected)


def test_warmup_of_unknown_length_raises() -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield BATCH[0][0], BATCH[1][0]

    batches = torch.utils.data.DataLoader(Endless(), batch_size=2)
    with pytest.raises(UsageError, match="warmup_epochs is 1, but the training loader has no length"):
        trainer().fit(make("baseline", warmup_epochs=1), batches)
