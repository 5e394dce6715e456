"""Test that training batches end in the samples' indices if the module needs them."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from hsakd_pl import DigitsDataModule


class Asking(pl.LightningModule):
    """Record the training batches."""

    def __init__(self, needs_indices: bool) -> None:
        super().__init__()
        self.needs_indices, self.layer = needs_indices, torch.nn.Linear(1, 1)
        self.batches: list[list[Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("augment", [False, True])
def test_batches_hold_sample_indices_only_if_module_needs_them(make_trainer, augment: bool) -> None:
    plain, asking = Asking(False), Asking(True)
    for module in (plain, asking):
        data = DigitsDataModule(batch_size=8, augment=augment)
        make_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(module, datamodule=data)
    for (images, labels), (same_images, same_labels, indices) in zip(plain.batches, asking.batches, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert torch.equal(data.splits["train"].targets[indices], labels)
