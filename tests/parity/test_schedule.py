"""Test learning rates of the public modules' ``configure_optimizers``."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import create_network

from . import fill
from .recipes import build_module, network_count, recipe_of
from .recordings import read

RECORDS = read("schedule.json")
BY_EPOCH = [name for name, record in RECORDS.items() if "changes" in record]
WARM_UPS = [name for name, record in RECORDS.items() if "per_iteration" in record]
CLASSES = 5


def small_module(name: str, **options: Any) -> Any:
    """Return the module of a recipe with small networks."""
    recipe = recipe_of(name)
    if recipe == "linear":
        options["num_classes"] = CLASSES
    networks = [create_network("resnet20", CLASSES) for _ in range(network_count(recipe))]
    return build_module(recipe, networks, **options)


def test_every_schedule_recording_is_tested() -> None:
    assert set(BY_EPOCH) | set(WARM_UPS) == set(RECORDS)


@pytest.mark.parametrize("name", BY_EPOCH)
def test_learning_rate_by_epoch_matches_published_code(name: str) -> None:
    record = RECORDS[name]
    module = small_module(name, lr=record["init_lr"], milestones=tuple(record["milestones"]))
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    assert schedule["interval"] == "epoch"
    assert schedule.get("frequency", 1) == 1
    changes = dict(record["changes"])
    expected, rates, rate = [], [], float("nan")
    for epoch in range(record["epochs"]):
        rate = changes.pop(epoch, rate)
        expected.append(rate)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert not changes
    assert rates == pytest.approx(expected, rel=1e-9)


class RecordRates(pl.Callback):
    """Record the learning rate of every iteration, by epoch."""

    def __init__(self) -> None:
        self.rates: dict[int, list[float]] = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.setdefault(trainer.current_epoch, []).append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", WARM_UPS)
def test_warm_up_by_iteration_matches_published_code(name: str) -> None:
    record = RECORDS[name]
    warmup, iterations = record["warmup_epoch"], record["iterations_per_epoch"]
    later = dict(record["later_epochs"])
    module = small_module(
        record["script"], lr=record["init_lr"], milestones=tuple(record["milestones"]), warmup_epochs=warmup
    )
    data = TensorDataset(fill.images(9, iterations, 8).float(), fill.targets(10, CLASSES, iterations))
    recorder = RecordRates()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max(later) + 1,
        callbacks=recorder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=1))
    warming = [rate for epoch in range(warmup) for rate in recorder.rates[epoch]]
    assert warming == pytest.approx(record["per_iteration"], rel=1e-9)
    assert set(recorder.rates) == set(range(warmup)) | set(later)
    for epoch, rate in later.items():
        assert recorder.rates[epoch] == pytest.approx([rate] * iterations, rel=1e-9)
