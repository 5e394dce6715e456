#!/usr/bin/env bash
# A run that Lightning's EarlyStopping has ended trains one more epoch each time it is started again from its last
# checkpoint. The callback's state (patience used up) is restored, but it is looked at only after the next validation.
# A job that a scheduler starts again "until it is finished" changes its result with every start.
# Most people expect that a finished run, resumed from its last checkpoint, ends at once, as with max_epochs.
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
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
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

    def validation_step(self, batch, batch_idx):
        self.log("plateau", 1.0)  # never gets better

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def epochs(max_epochs, callbacks, ckpt_path=None):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(16, 4), torch.arange(16) % 2), batch_size=2)
    last = ModelCheckpoint(".", "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[last, *callbacks],
    )
    trainer.fit(Linear(), data, data, ckpt_path=ckpt_path)
    return trainer.current_epoch


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
counts = [epochs(2, []), epochs(2, [], "last.ckpt"), epochs(2, [], "last.ckpt")]
print("  max_epochs 2: epochs after the first start and two resumes", counts)
stopped = []
for ckpt_path in (None, "last.ckpt", "last.ckpt"):
    stopped.append(epochs(10, [EarlyStopping("plateau", patience=1)], ckpt_path))
print("  EarlyStopping, patience 1: the same", stopped)
assert counts == [2, 2, 2], counts
assert stopped == [2, 3, 4], stopped
print("as described")
PROGRAM
