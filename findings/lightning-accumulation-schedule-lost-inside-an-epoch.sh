#!/usr/bin/env bash
# Lightning's GradientAccumulationScheduler is forgotten by a resume inside an epoch. It sets its factor when an epoch
# STARTS, and a checkpoint that was saved between two batches resumes behind that point: the rest of the epoch steps
# after every batch. Other weights, and 13 optimizer steps instead of 10, without a warning.
# Most people expect a run that resumes from a mid-epoch checkpoint to take the steps of the uninterrupted run.
# pytorch-lightning 2.6.6, torch 2.15.0, CPU, 2026-11-29
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 pytorch-lightning==2.6.6
OMP_NUM_THREADS=1 env/bin/python - <<'PROGRAM'
import logging
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Linear(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveInside(pl.Callback):
    """Save a checkpoint after batch 4 of 8 of the second epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            trainer.save_checkpoint("inside.ckpt")


def fit(callbacks, ckpt_path=None):
    torch.manual_seed(0)
    module = Linear()
    data = TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[GradientAccumulationScheduler({0: 1, 1: 4}), *callbacks],
    )
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=ckpt_path)
    return trainer.global_step, module.head.weight.detach()


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
whole, weights = fit([SaveInside()])
resumed, resumed_weights = fit([], "inside.ckpt")
print("8 batches stepping after each, 8 batches stepping after every 4th")
print(f"  uninterrupted: {whole} steps; resumed after batch 4 of the second epoch: {resumed} steps")
print("  equal weights:", torch.equal(weights, resumed_weights))
assert (whole, resumed) == (10, 13)
assert not torch.equal(weights, resumed_weights)
print("as described")
PROGRAM
