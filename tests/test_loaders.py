"""Test that any DataLoader of (images, labels) trains, validates and tests a module."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import BATCH, MODULES, make, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import read_row
from hsakd_pl.records.progress import Progress
from hsakd_pl.records.results import ResultWriter
from hsakd_pl.records.summary import Introduction
from hsakd_pl.records.tested import EvaluationWriter

IMAGES, LABELS = BATCH


def batches(images: Tensor = IMAGES, labels: Tensor = LABELS, **options: Any) -> DataLoader[Any]:
    """Return two batches of two images."""
    return DataLoader(TensorDataset(images, labels), batch_size=2, **options)


@pytest.mark.parametrize("kind", list(MODULES))
def test_modules_fit_and_test_with_plain_loaders(kind: str) -> None:
    module, quiet = make(kind), trainer()
    quiet.fit(module, train_dataloaders=batches(), val_dataloaders=batches())
    assert {"train/loss", "val/acc"} <= set(quiet.callback_metrics)
    [metrics] = quiet.test(module, dataloaders=batches(), verbose=False)
    assert 0 <= metrics["test/acc"] <= 1


def test_run_with_plain_loaders_is_shown_and_writes_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ResultWriter(tmp_path, [], 0, pl.callbacks.ModelCheckpoint(tmp_path), {})
    watching = [Introduction(), Progress(), EvaluationWriter(str(tmp_path)), result]
    shown = trainer(max_epochs=2, callbacks=watching, enable_progress_bar=True, default_root_dir=tmp_path)
    module = make("student")
    shown.fit(module, batches(), batches())
    shown.test(module, batches(), verbose=False)
    row, printed = read_row(tmp_path / "result.json"), capsys.readouterr().out
    assert row["finished"] and row["epochs"] == 2 and 0 <= row["last_val_acc"] <= 1
    assert row["protocol"]["validated_on"] is None
    assert "batch of the loader" in printed and "epoch 2/2" in printed
    assert (tmp_path / "test.json").is_file()


def dictionaries(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"images": pairs[0][0], "labels": pairs[0][1]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": (IMAGES * 40 + 128).clamp(0, 255).byte()}, r"uint8.*v2\.Normalize.*or use ImageFolderDataModule"),
        ({"images": IMAGES[:, :1]}, r"\(2, 1, 8, 8\), not floating point \(B, 3, H, W\)"),
        ({"images": IMAGES.permute(0, 2, 3, 1)}, r"\(2, 8, 8, 3\), not floating point"),
        ({"images": IMAGES.long()}, "torch.int64.*not floating point"),
        ({"images": IMAGES.double()}, r"torch.float64.*the network is torch.float32: use images\.float\(\)"),
        ({"labels": LABELS + 7}, r"labels from 7 to 8, but the network has 4 classes, 0\.\.3: set num_classes"),
        ({"labels": LABELS - 2}, "labels from -2 to -1"),
        ({"labels": LABELS.float()}, r"labels of torch.float32 \(2,\), not torch.int64 \(2,\)"),
        ({"labels": torch.eye(4)}, r"labels of torch.float32 \(2, 4\)"),
        ({"collate_fn": dictionaries}, r"dict, not tensors \(images, labels\).*collate_fn"),
        ({"collate_fn": lambda pairs: (*pairs[0], 0)}, r"\['Tensor', 'Tensor', 'int'\], not"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_invalid_loader_batches_raise_usage_error(changed: dict[str, Any], message: str, stage: str) -> None:
    with pytest.raises(UsageError, match=f"the loader returns .*{message}"):
        getattr(trainer(), stage)(make("teacher"), batches(**changed))


def test_double_precision_network_accepts_double_images() -> None:
    quiet = trainer(precision="64-true")
    quiet.fit(make("baseline"), batches(IMAGES.double()))
    assert "train/loss" in quiet.callback_metrics
