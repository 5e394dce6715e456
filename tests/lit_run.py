"""Train on a set of LitData in each of two processes, whole and resumed inside an epoch; save the losses."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from small import Losses

from hsakd_pl import BaselineModule, LitDataModule


def train(path: str, folder: Path, checkpoint: Path | None = None, devices: int = 1) -> tuple[list[float], Any]:
    """Train for two epochs of four steps, saving after each; return the losses of this process and the weights."""
    torch.manual_seed(0)
    recorder = Losses()
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[recorder, saving],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    options: dict[str, Any] = {"image_size": 8, "batch_size": 6, "seed": 3, "num_workers": 0, "mean": "imagenet"}
    data = LitDataModule(path=path, augmentation="resized_crop", **options)
    module = BaselineModule("resnet8", num_classes=3, lr=0.01)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return recorder.values, module.state_dict()


def main() -> None:
    """Train on the set that the first argument names, and write into the folder that the second one names."""
    path, folder = sys.argv[1], Path(sys.argv[2])
    whole, weights = train(path, folder / "whole", devices=2)
    resumed, again = train(path, folder / "resumed", folder / "whole" / "step=5.ckpt", devices=2)
    rank = torch.distributed.get_rank()
    torch.save({"whole": whole, "resumed": resumed, "weights": (weights, again)}, folder / f"{rank}.pt")
