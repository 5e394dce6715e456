#!/usr/bin/env bash
# Lightning's fit never calls the module's train(). A LightningModule that overrides train() to keep a frozen backbone
# in eval mode, as one does in plain PyTorch, trains with that backbone's batch norms in TRAINING mode, and their
# running statistics move. eval() on the backbone before the fit is what works: fit keeps each layer's mode.
# Most people expect fit to begin with model.train(), as every PyTorch training loop does and as Lightning did.
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
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Probe(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
        self.head = nn.Linear(4, 2)
        self.calls = 0

    def train(self, mode=True):
        self.calls += 1
        super().train(mode)
        self.backbone.eval()
        return self

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images).mean((2, 3))), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.1)


def moved(probe):
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    images = torch.randn(8, 3, 8, 8) + 3
    before = probe.backbone[1].running_mean.clone()
    trainer.fit(probe, DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4))
    return not torch.equal(before, probe.backbone[1].running_mean)


torch.manual_seed(0)
print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
overriding = Probe()
has_moved = moved(overriding)
print(f"  train() overridden: called {overriding.calls} times, statistics moved: {has_moved}")
prepared = Probe()
prepared.backbone.eval()
prepared_has_moved = moved(prepared)
print(f"  backbone.eval() before the fit: statistics moved: {prepared_has_moved}")
assert overriding.calls == 0 and has_moved and not prepared_has_moved
print("as described")
PROGRAM
