"""Test features as a data set: computed once per split, batched and resumed like images, and never written back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from hsakd_pl import DigitsDataModule, FeatureDataModule
from hsakd_pl.errors import UsageError

MakeTrainer = Callable[..., pl.Trainer]


class Encoder:
    """Return means over rows and count the calls."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.batches += 1
        assert images.dtype == torch.float32 and not torch.is_grad_enabled()
        return images.mean(3).flatten(1)


def features_of(**options: Any) -> tuple[FeatureDataModule, Encoder]:
    encoder = Encoder()
    data = FeatureDataModule(DigitsDataModule(batch_size=100, augment=False, num_workers=0, **options), encoder)
    data.setup("fit")
    return data, encoder


def test_feature_batches_match_image_batches() -> None:
    data, encoder = features_of()
    assert (data.num_classes, data.batch_size) == (10, 100)
    with torch.no_grad():
        compare(data, encoder)


def compare(data: FeatureDataModule, encoder: Encoder) -> None:
    for features, images in (
        (data.train_dataloader(), data.images.train_dataloader()),
        (data.val_dataloader(), data.images.val_dataloader()),
    ):
        for (found, labels), batch in zip(features, images, strict=True):
            assert torch.equal(labels, batch[1])
            torch.testing.assert_close(found, encoder(data.images.on_after_batch_transfer(batch, 0)[0]))
            assert data.on_after_batch_transfer((found, labels), 0)[0] is found


def test_features_are_computed_once_and_images_stay_unchanged() -> None:
    data, encoder = features_of()
    before = dict(data.images.splits)
    assert encoder.batches == 0  # not before the network is on its device
    for _ in range(3):
        list(data.train_dataloader())
        list(data.val_dataloader())
        data.setup("fit")
    assert encoder.batches == 13 + 6
    assert all(data.images.splits[name] is split for name, split in before.items())
    assert torch.equal(data.targets("train"), before["train"].targets)


def test_feature_training_requires_augment_false_but_knn_does_not() -> None:
    data = FeatureDataModule(DigitsDataModule(num_workers=0), Encoder())
    data.setup("fit")
    assert data.features("train").shape == (1257, 48)
    with pytest.raises(UsageError, match="set augment to false"):
        data.train_dataloader()


class Classifier(pl.LightningModule):
    """Train a linear layer on features and record its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(48, 10), []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch[0].sum().item())
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("samples", float(len(self.layer(batch[0]))), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_feature_training_resumes_bitwise(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole, resumed = Classifier(), Classifier()
    steps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    run = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[steps], limit_val_batches=0)
    run.fit(whole, datamodule=features_of()[0])
    again = make_trainer(max_epochs=2, limit_val_batches=0)
    again.fit(resumed, datamodule=features_of()[0], ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed.seen == whole.seen[5:] and len(whole.seen) == 26
    [tested] = make_trainer().test(whole, datamodule=features_of()[0], verbose=False)
    assert tested["samples"] == 540
