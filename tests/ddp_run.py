"""Train three steps, split over processes or in time; as a program of two processes, save the results."""

import sys
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn
from methods import METHODS, make_data, make_method
from pytorch_lightning.utilities import rank_zero_only

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    HSAKDModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    create_network,
)
from hsakd_pl.data import Split
from hsakd_pl.errors import UsageError


class FixedStatistics(pl.Callback):
    """Normalise with running statistics, so that splitting a batch does not change the result."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.eval()


class Gradients(pl.Callback):
    """Record the gradients of the last step, averaged over the processes."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def make(kind: str) -> HSAKDModule:
    if kind in METHODS:
        return make_method(kind)
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 10, "lr": 0.01, "branch_metrics_every": 1}
    if kind == "teacher":
        return TeacherModule("resnet8", **options)
    if kind in ("plain", "compiled"):
        return BaselineModule("resnet8", compile=kind == "compiled", **options)
    if kind == "frozen":
        return TeacherModule("resnet8", freeze_backbone=True, weights="random", **options)
    if kind in ("baseline", "few"):  # unrequested metrics of a network with branches
        return BaselineModule(create_network("resnet8", 10), **options)
    if kind == "hinton":
        networks = (create_network("resnet8", 10), create_network("resnet14", 10))
        return StudentModule(*networks, joint_kd_weight=0, transform_images=False, **options)
    if kind == "student":
        return StudentModule("resnet8", "resnet14", teacher_weights="random", **options)
    return MutualModule(["resnet8", "resnet14"], **options)


def train(
    kind: str, batch_norm: str = "fixed", accumulated: str = "1", batches: str | None = None, devices: int = 1
) -> dict[str, Any]:
    """Train three steps on 16 images each; return metrics, weights and the last gradients.

    Steps accumulate a number of ``batches``, of which three times as many as ``accumulated`` make three full steps.
    """
    windows = int(accumulated)
    pl.seed_everything(0)
    module = make(kind)
    recorder = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        limit_train_batches=3 * windows if batches is None else int(batches),
        accumulate_grad_batches=windows,
        callbacks=[recorder, FixedStatistics()] if batch_norm == "fixed" else [recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    # without workers, which start slowly in processes that are themselves forked from a fork server, as these are
    data = (make_data if kind in METHODS else DigitsDataModule)(batch_size=16 // windows, num_workers=0)
    data.setup("fit")
    validated = 1 if kind == "few" else 44  # fewer images than processes, or a last batch that is smaller
    data.splits = {"train": data.splits["train"], "test": Split(*(part[:validated] for part in data.splits["test"]))}
    trainer.fit(module, datamodule=data)
    assert (trainer.global_step, trainer.world_size) == (3, devices)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"state": module.state_dict(), "metrics": metrics, "gradients": recorder.gradients}


class Uneven(DigitsDataModule):
    """Provide other data to the second process: one image less, or another label."""

    def __init__(self, difference: str) -> None:
        super().__init__(batch_size=16)
        self.difference = difference

    def read(self, train: bool) -> Split:
        split = super().read(train)
        if rank_zero_only.rank == 0:
            return split
        if self.difference == "image":
            return split.take(list(range(len(split.targets) - 1)))
        split.targets[0] = (split.targets[0] + 1) % 10
        return split


def refusal(difference: str) -> str:
    """Return the error of this process, and of the other one, in a fit whose processes read different data."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, enable_checkpointing=False, **quiet
    )
    try:
        trainer.fit(make("baseline"), datamodule=Uneven(difference))
    except UsageError as error:
        messages: list[Any] = [None, None]
        torch.distributed.all_gather_object(messages, str(error))
        return " / ".join(messages)
    return "no error"


def main() -> None:
    """Train each of the runs that the arguments name, and save their results in the file that is the last one."""
    *runs, out = sys.argv[1:]
    trained: dict[str, Any] = {run: train(*run.split(), devices=2) for run in runs}
    trained["refusals"] = {difference: refusal(difference) for difference in ("image", "label")}
    if rank_zero_only.rank == 0:
        torch.save(trained, out)
