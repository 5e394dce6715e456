"""Trains three steps on the digits with any number of processes and saves what came out; see test_ddp.py."""

import sys
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn

from hsakd_pl import DigitsDataModule, HSAKDModule, MutualModule, StudentModule, TeacherModule


class FixedStatistics(pl.Callback):
    """Batch norms normalise by their running statistics, so that a batch may be split without changing the result."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


class Gradients(pl.Callback):
    """Keeps the gradients of the last step, averaged over the processes."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.found = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def make(kind: str) -> HSAKDModule:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 10, "lr": 0.01, "branch_metrics_every": 1}
    if kind == "teacher":
        return TeacherModule("resnet8", **options)
    if kind == "frozen":
        return TeacherModule("resnet8", freeze_backbone=True, **options)
    if kind == "student":
        return StudentModule("resnet8", "resnet14", **options)
    return MutualModule(["resnet8", "resnet14"], **options)


if __name__ == "__main__":
    kind, devices, batch_norm, out = sys.argv[1:]
    pl.seed_everything(0)
    module = make(kind)
    gradients = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        limit_train_batches=3,
        callbacks=[gradients, FixedStatistics()] if batch_norm == "fixed" else [gradients],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=16))
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save({"state": module.state_dict(), "metrics": metrics, "gradients": gradients.found}, out)
