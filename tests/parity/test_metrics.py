"""Test accuracies and raw counts of the public modules' validation for recorded logits, batch by batch."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl.networks import HSAKDNet

from . import fill, inputs
from .recipes import build_module, network_count, recipe_of
from .recorded import recorded_network
from .recordings import read

METRICS = read("metrics.json")
RECORDS: dict[str, Any] = METRICS["metrics"]
META: dict[str, Any] = METRICS["meta"]
INPUTS = inputs.metric_inputs(META)
# Names of a branch's accuracies, of their recorded counts and of their recorded rounded fractions
BRANCH_NAMES = (
    ("joint", "ss_top1_num", "ss_accuracy_top1"),
    ("joint_top5", "ss_top5_num", "ss_accuracy_top5"),
    ("class", "class_top1_num", "class_accuracy_top1"),
    ("class_top5", "class_top5_num", "class_accuracy_top5"),
)
HEAD_NAMES = (
    ("acc", "top1_num", "class_accuracy_top1"),
    ("acc_top5", "top5_num", "class_accuracy_top5"),
)


def image_batch() -> torch.Tensor:
    return fill.images(8, sum(META["batches"]), 4).float()


def network_of(number: int) -> HSAKDNet:
    """Return network 1 or 2 of the recording."""
    joint_logits = [INPUTS[f"net{number}_ss_logits_{branch}"] for branch in range(META["branches"])]
    return recorded_network(image_batch(), INPUTS[f"net{number}_logits"], joint_logits)


def validate(module: pl.LightningModule) -> dict[str, float]:
    """Return the metrics of a validation run over the recorded batches."""
    data = TensorDataset(image_batch(), INPUTS["targets"])
    batches = torch.arange(len(data)).split(META["batches"])
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.validate(module, DataLoader(data, batch_sampler=[batch.tolist() for batch in batches]), verbose=False)
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


def compare(metrics: dict[str, float], record: dict[str, Any], peer: int | None) -> None:
    """Compare the metrics of a run, or of one of its peers, with the recorded counts and rounded fractions."""
    prefix = "val/" if peer is None else f"val/peer{peer + 1}_"
    images, rows = record["total"], 4 * record["total"]

    def recorded(values: Any) -> Any:
        return values if peer is None else values[peer]

    for name, count, fraction in HEAD_NAMES:
        accuracy = metrics[prefix + name]
        assert accuracy * images == pytest.approx(recorded(record["correct"][count]), abs=1e-4)
        assert accuracy == pytest.approx(recorded(record[fraction])[-1], abs=5.1e-5)
    for branch in range(META["branches"]):
        for name, count, fraction in BRANCH_NAMES:
            accuracy = metrics[f"{prefix}branch{branch + 1}_{name}"]
            assert accuracy * rows == pytest.approx(recorded(record["correct"][count])[branch], abs=1e-4)
            assert accuracy == pytest.approx(recorded(record[fraction])[branch], abs=5.1e-5)


@pytest.mark.parametrize("name", RECORDS)
def test_validation_metrics_match_published_code(name: str) -> None:
    record, recipe = RECORDS[name], recipe_of(name)
    networks = [network_of(number) for number in range(1, network_count(recipe) + 1)]
    metrics = validate(build_module(recipe, list(networks)))
    for peer in range(len(networks)) if recipe == "mutual" else [None]:
        compare(metrics, record, peer)
    if recipe == "mutual":
        mean = sum(record["correct"]["top1_num"]) / len(networks) / record["total"]
        assert metrics["val/acc"] == pytest.approx(mean, abs=1e-6)
