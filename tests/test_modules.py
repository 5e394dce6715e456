"""Test modules: loss terms and their weights, logging, and error messages."""

import csv
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger
from small import BATCH, MODULES, Losses, loader, make, trainer
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import FLIPS, DigitsDataModule, StudentModule, create_network
from hsakd_pl.errors import UsageError


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("kind", MODULES)
def test_loss_terms_are_logged_by_name(kind: str, tmp_path: Path) -> None:
    module, terms = make(kind, lr=1e-3), [f"loss_{term}" for term in MODULES[kind][2]]
    run = trainer(tmp_path)
    run.fit(module, loader(), loader())
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    assert {name for name in logged if name.startswith("train/")} == {"train/loss"} | {f"train/{t}" for t in terms}
    assert logged["train/loss"] == pytest.approx(sum(logged[f"train/{term}"] for term in terms), rel=1e-5)
    assert all(math.isfinite(value) for value in logged.values())
    wanted = {"val/loss", "val/acc"}  # top-5 of four classes would always be right
    if kind == "mutual":
        wanted |= {f"val/peer{peer}_{name}" for peer in (1, 2) for name in ("loss", "acc")} | {"val/ensemble_acc"}
        assert logged["val/acc"] == pytest.approx((logged["val/peer1_acc"] + logged["val/peer2_acc"]) / 2)
    if kind not in ("baseline", "probe"):
        peers = ("peer1_", "peer2_") if kind == "mutual" else ("",)
        measured = ("joint", "joint_top5", "class")
        wanted |= {f"val/{peer}branch{branch}_{what}" for peer in peers for branch in (1, 2, 3) for what in measured}
    assert {name for name in logged if name.startswith("val/")} == wanted


class LossesAndMeans(Losses):
    """Record each step's loss and the logged mean of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.means.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("steps", [-1, 7])  # as long as there is data, or to the middle of the last epoch
def test_logged_loss_is_mean_over_images_of_epoch(steps: int) -> None:
    uneven = DataLoader(TensorDataset(torch.randn(7, 3, 8, 8), torch.arange(7) % 4), batch_size=3)
    module = make("student", lr=1e-3)
    for _ in range(2):  # the second fit starts afresh
        kept = LossesAndMeans()
        trainer(max_epochs=3, max_steps=steps, callbacks=[kept], num_sanity_val_steps=0).fit(module, uneven, loader())
        epochs = [kept.values[start : start + 3] for start in (0, 3, 6)]
        assert kept.means == pytest.approx([np.average(losses, weights=[3, 3, 1][: len(losses)]) for losses in epochs])


@pytest.mark.parametrize("verb", ["validate", "test"])
@pytest.mark.parametrize("spoilt", ["images", "weights"])
def test_nan_in_evaluation_raises(verb: str, spoilt: str) -> None:
    images, module = BATCH[0].clone(), make("teacher")
    if spoilt == "images":
        images[0] = math.nan
    else:
        module.network.backbone.head[-1].weight.data[0, 0] = math.inf
    with pytest.raises(UsageError, match=r"/loss is NaN or infinite in epoch 0: the weights .* or some images"):
        getattr(trainer(), verb)(module, loader(images), verbose=False)


def read_column(folder: Path, name: str) -> list[int]:
    """Return the epochs in which a metric was logged."""
    with (folder / "logs/version_0/metrics.csv").open() as file:
        return [int(row["epoch"]) + 1 for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (10, [3]), (0, [])])
def test_branch_metrics_are_computed_every_n_epochs(tmp_path: Path, every: int, epochs: list[int]) -> None:
    module = make("teacher", branch_metrics_every=every)
    run = trainer(tmp_path, max_epochs=3, logger=CSVLogger(tmp_path, "logs"), log_every_n_steps=1)
    run.fit(module, loader(), loader())
    assert read_column(tmp_path, "val/acc") == [1, 2, 3]
    assert read_column(tmp_path, "val/branch3_class") == epochs
    (tested,) = run.test(module, loader(), verbose=False)
    assert ("test/branch1_joint" in tested) == (every > 0)
    (validated,) = run.validate(module, loader(), verbose=False)
    assert ("val/branch1_joint" in validated) == (every > 0)


ABLATIONS = [(kind, term) for kind in ("teacher", "student", "mutual") for term in MODULES[kind][2]]


@pytest.mark.parametrize(("kind", "ablated"), [each for each in ABLATIONS if each != ("student", "joint_kd")])
def test_term_with_weight_0_is_omitted(kind: str, ablated: str) -> None:
    whole, without = make(kind, built=True), make(kind, built=True, **{f"{ablated}_weight": 0.0})
    rest = sum(term for name, term in whole.losses(BATCH).items() if name != f"loss_{ablated}")
    loss = without.training_step(BATCH, 0)
    torch.testing.assert_close(loss, rest)
    gradients = [
        torch.autograd.grad(of, list(module.networks.parameters()), materialize_grads=True)
        for of, module in ((rest, whole), (loss, without))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("networks", [("resnet8", "resnet14"), (plain, plain), ("resnet8", plain), (plain, "resnet8")])
def test_plain_kd_needs_no_branches(networks: tuple[Any, Any]) -> None:
    student, teacher = (network() if callable(network) else network for network in networks)
    options: dict[str, Any] = {"joint_kd_weight": 0, "kd_weight": 0.9, "ce_weight": 0.1, "temperature": 4.0}
    options["transform_images"] = False
    options["teacher_weights"] = "random" if isinstance(teacher, str) else None
    module = StudentModule(student, teacher, num_classes=4, **options)
    images, labels = BATCH
    learnt, taught = module.network(images), module.teacher(images).logits
    divergence = F.kl_div((learnt / 4).log_softmax(1), (taught / 4).softmax(1), reduction="batchmean")
    expected = 0.1 * F.cross_entropy(learnt, labels) + 0.9 * 16 * divergence
    torch.testing.assert_close(module.training_step(BATCH, 0), expected)


def test_mutual_loss_averages_over_other_peers() -> None:
    module = make("mutual", networks=["resnet8", "resnet14", "wrn_16_1"])
    rotated = torch.cat([torch.rot90(BATCH[0], turn, (2, 3)) for turn in range(4)])
    logits = [peer(rotated).logits / 3 for peer in module.networks]
    pairs = [F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") * 9 for a, b in permutations(logits, 2)]
    terms = module.losses(BATCH)
    torch.testing.assert_close(terms["loss_kd"], sum(pairs) / 2)
    for peer, term in ((peer, term) for peer in module.networks for term in terms.values()):
        (gradient,) = torch.autograd.grad(term, peer.backbone.stem.conv1.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mutual", {"networks": ["resnet8"]}, "networks: expected two or more peers"),
        (
            "mutual",
            {"networks": ["resnet8", "vgg8"]},
            "networks: expected two or more .*equal .*4 classes, 3 branches, .*'4 classes, 4 branches",
        ),
        ("mutual", {"networks": [create_network("resnet8", n) for n in (4, 5)]}, "5 classes"),
        ("student", {"teacher": create_network("resnet8", 5)}, r"differ in num_classes \(4 and 5\)"),
        ("student", {"teacher": "vgg8"}, r"differ in branches \(3 and 4\): .*joint_kd_weight=0"),
        (
            "student",
            {"teacher": create_network("resnet8", 4, branches=False)},
            "CIFARResNet of 4 classes has no branches",
        ),
        (
            "student",
            {"network": create_network("resnet8", 4, branches=False)},
            "CIFARResNet of 4 classes has no branches",
        ),
        ("student", {"teacher": plain()}, "Sequential of 4 classes has no branches"),
        ("student", {"transform_images": False}, "set joint_kd_weight to 0"),
        ("student", {"teacher": create_network("resnet8", 4, transforms=FLIPS)}, r"differ in transforms"),
        ("mutual", {"networks": ["resnet8", create_network("resnet8", 4, transforms=FLIPS)]}, "4 rotations.*2 flips"),
        ("teacher", {"network": create_network("resnet8", 4), "transforms": "flips"}, "choose them in create_network"),
        ("teacher", {"network": create_network("resnet8", 4, branches=False)}, "has no branches"),
        ("teacher", {"network": plain()}, "Sequential of 4 classes has no branches"),
        ("teacher", {"compile": True, "fast": False}, "compile has no effect with fast=False"),
        ("baseline", {"network": "resnet9"}, "unknown network 'resnet9'"),
    ],
)
def test_invalid_module_options_raise_with_reason(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(kind, **options)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_too_small_images_are_refused_before_computation(stage: str) -> None:
    with pytest.raises(UsageError, match=r"image size 16 x 16: .* at least 32 x 32 pixels"):
        getattr(trainer(), stage)(make("baseline", network="resnet18_imagenet", num_classes=10), DigitsDataModule())


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_data_with_other_class_count_are_refused(tmp_path: Path, stage: str) -> None:
    with pytest.raises(UsageError, match=r"network has 4 classes, DigitsDataModule has 10: set num_classes=10"):
        getattr(trainer(tmp_path), stage)(make("baseline"), datamodule=DigitsDataModule(num_workers=0))
