#!/usr/bin/env bash
# A Lightning run with max_steps, resumed from the checkpoint of an epoch's END, takes one batch and ends as if it were
# complete: 5 of 8 steps. With max_epochs alone the same checkpoint resumes exactly. While the loops are restored, the
# trainer does not know max_steps yet and takes the ended epoch for one that is still going on.
# Most people expect that max_steps only says where to end, and that a resumed run ends at the same step.
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
from pytorch_lightning.callbacks import ModelCheckpoint
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


def steps(ckpt_path, **budget):
    torch.manual_seed(0)
    saved = ModelCheckpoint(
        ".", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saved],
        **budget,
    )
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    trainer.fit(Linear(), DataLoader(data, batch_size=2), ckpt_path=ckpt_path)
    return trainer.global_step


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
print("2 epochs of 4 batches; resumed from the checkpoint after the first epoch")
counts = {}
for name, budget in (("max_epochs=2", {"max_epochs": 2}), ("and max_steps=8", {"max_epochs": 2, "max_steps": 8})):
    counts[name] = steps(None, **budget), steps("epoch=0.ckpt", **budget)
    print(f"  {name}: {counts[name][0]} steps uninterrupted, {counts[name][1]} resumed")
assert counts == {"max_epochs=2": (8, 8), "and max_steps=8": (8, 5)}, counts
print("as described")
PROGRAM
