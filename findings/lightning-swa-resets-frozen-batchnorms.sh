#!/usr/bin/env bash
# Lightning's StochasticWeightAveraging replaces the running statistics of FROZEN batch norms. A backbone without
# gradients, in eval mode during the whole fit, ends with mean 0 and variance 1: the callback resets every batch norm
# of the module before the last pass, which re-estimates only those in training mode. Nothing is printed.
# Most people expect that a frozen network in eval mode is the same before and after a fit, whatever the callbacks.
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
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Probe(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False).eval()
        self.backbone[1].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.backbone[1].running_var.fill_(9.0)
        self.head = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images).mean((2, 3))), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.1)


def statistics(callbacks):
    torch.manual_seed(0)
    probe = Probe()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks,
    )
    images = torch.randn(8, 3, 8, 8) + 3
    trainer.fit(probe, DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4))
    norm = probe.backbone[1]
    print("  training mode", norm.training, " mean", norm.running_mean.tolist(), " variance", norm.running_var.tolist())
    return norm.running_mean.tolist(), norm.running_var.tolist()


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
print("without a callback")
kept = statistics([])
print("with StochasticWeightAveraging")
lost = statistics([StochasticWeightAveraging(0.1, swa_epoch_start=1)])
assert kept == ([1.0, 2.0, 3.0, 4.0], [9.0] * 4), kept
assert lost == ([0.0] * 4, [1.0] * 4), lost
print("as described")
PROGRAM
