#!/usr/bin/env bash
# A run with one of Lightning's BaseFinetuning callbacks (BackboneFinetuning among them), resumed after the epoch in
# which it has unfrozen the backbone, trains on with a FROZEN backbone. The parameter groups are restored, but every
# fit freezes the backbone first and nothing unfreezes it a second time. No error, no warning; the loss still falls.
# Most people expect a resumed run to train the parameters that the interrupted one trained.
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
from pytorch_lightning.callbacks import BaseFinetuning, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(inputs)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], 0.1)


class UnfreezeInSecondEpoch(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.backbone)

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=0.1)


def fit(ckpt_path=None):
    torch.manual_seed(0)
    module = Network()
    saved = ModelCheckpoint(
        ".", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saved, UnfreezeInSecondEpoch()],
    )
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=ckpt_path)
    return module.backbone.weight


print("pytorch-lightning", pl.__version__, " torch", torch.__version__)
whole = fit()
resumed = fit("epoch=2.ckpt")
saved = torch.load("epoch=2.ckpt", weights_only=True)["state_dict"]["backbone.weight"]
print("4 epochs, the backbone is unfrozen in the second; resumed after the third")
print("  backbone trainable at the end: uninterrupted", whole.requires_grad, " resumed", resumed.requires_grad)
print("  backbone moved in the fourth epoch: uninterrupted", not torch.equal(whole, saved), end="")
print("  resumed", not torch.equal(resumed, saved))
assert whole.requires_grad and not resumed.requires_grad
assert not torch.equal(whole, saved) and torch.equal(resumed, saved)
print("as described")
PROGRAM
