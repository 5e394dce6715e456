"""Train on a data set of tables in each of two processes, whole and resumed inside an epoch; save the losses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from small import Losses
from small import trainer as silent_trainer

import hsakd_pl
from hsakd_pl import BaselineModule


def losses(data: pl.LightningDataModule, **options: Any) -> list[float]:
    """Train a small network on a data module; return the loss of each step."""
    torch.manual_seed(0)
    recorder = Losses()
    module = BaselineModule("resnet8", num_classes=data.num_classes, lr=0.01)
    silent_trainer(callbacks=[recorder], **options).fit(module, data)
    return recorder.values


def train(
    kind: str, path: str, folder: Path, checkpoint: Path | None = None, devices: int = 1, **chosen: Any
) -> tuple[list[float], Any]:
    """Train for two epochs of four steps, saving after each; return the losses of this process and the weights.

    ``kind`` is the name of the data module, and ``chosen`` are options of it.
    """
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
    data = getattr(hsakd_pl, kind)(path=path, augmentation="resized_crop", **(options | chosen))
    module = BaselineModule("resnet8", num_classes=3, lr=0.01)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return recorder.values, module.state_dict()


def main() -> None:
    """Train on the data module and the path that the first arguments name, and write into the folder that follows.

    Further options of the data module are JSON.
    """
    kind, path, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    whole, weights = train(kind, path, folder / "whole", devices=2, **options)
    resumed, again = train(kind, path, folder / "resumed", folder / "whole" / "step=5.ckpt", devices=2, **options)
    rank = torch.distributed.get_rank()
    torch.save({"whole": whole, "resumed": resumed, "weights": (weights, again)}, folder / f"{rank}.pt")
