#!/usr/bin/env bash
# A run with Lightning's ModelPruning, resumed from its checkpoint, starts with masks of its own: the checkpoint holds
# the pruned weights but no masks, and the weights that were pruned train again. The resumed run ends with other masks
# and fewer zeros than the uninterrupted one; nothing is printed.
# Most people expect that what was pruned stays pruned, before and after a resume.
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
from pytorch_lightning.callbacks import ModelCheckpoint, ModelPruning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Linear(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 8)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def zeros(ckpt_path=None):
    torch.manual_seed(0)
    module = Linear()
    saved = ModelCheckpoint(
        ".", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    pruning = ModelPruning("l1_unstructured", parameter_names=["weight"], amount=0.5)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saved, pruning],
    )
    data = TensorDataset(torch.randn(8, 16), torch.arange(8))
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=ckpt_path)
    return int((module.head.weight == 0).sum())


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
whole = zeros()
names = sorted(torch.load("epoch=0.ckpt", weights_only=True)["state_dict"])
resumed = zeros("epoch=0.ckpt")
print("3 epochs, half of the remaining weights is pruned in each; the checkpoint after the first holds", names)
print(f"  zeros of 128 weights at the end: {whole} uninterrupted, {resumed} resumed")
assert names == ["head.bias", "head.weight"], names
assert whole == 112 and resumed < whole, (whole, resumed)
print("as described")
PROGRAM
