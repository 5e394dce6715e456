#!/usr/bin/env bash
# Two of Lightning's callbacks that average weights, WeightAveraging and EMAWeightAveraging, overwrite each other in the
# checkpoint: both write the raw weights under one key, and the second, which finds the first one's average in
# state_dict, stores that average as the raw weights. A resumed run trains on from the average. Nothing is printed, while
# two callbacks of one class are refused.
# Most people expect callbacks with states of their own to be independent of each other.
# pytorch-lightning 2.6.6, torch 2.15.0, CPU, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 pytorch-lightning==2.6.6 numpy==2.4.6
OMP_NUM_THREADS=1 env/bin/python - <<'PROGRAM'
import logging
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.layer(inputs) - targets).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def saved(averages):
    module = Line()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*averages, Raw()],
    )
    inputs = torch.linspace(-1, 1, 16)[:, None]
    trainer.fit(module, DataLoader(TensorDataset(inputs, 3 * inputs + 1), batch_size=4))
    return torch.load("last.ckpt", weights_only=False), Raw.weight


class Raw(pl.Callback):
    """Save a checkpoint in the middle of the fit, and keep the weight that is trained."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 2:
            Raw.weight = float(module.layer.weight.detach())
            trainer.save_checkpoint("last.ckpt")


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
for averages in ([EMAWeightAveraging(decay=0.5)], [EMAWeightAveraging(decay=0.5), WeightAveraging()]):
    checkpoint, raw = saved(averages)
    stored = float(checkpoint["current_model_state"]["layer.weight"])
    names = " and ".join(type(average).__name__ for average in averages)
    print(f"{names}: trained weight {raw:.6f}, stored as such {stored:.6f}")
    assert (abs(raw - stored) < 1e-7) == (len(averages) == 1)
PROGRAM
