"""Test that no step waits for the device: a run on ``meta`` tensors fails where a value is read."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import SingleDeviceStrategy
from small import MODULES, make
from torch import Tensor

from hsakd_pl import DigitsDataModule
from hsakd_pl.records.progress import Progress
from hsakd_pl.runs.checkpoints import LastCheckpoint


class Unreadable(CPUAccelerator):
    """Simulate an accelerator whose values cannot be read."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == "meta"


class OnMeta(SingleDeviceStrategy):
    """Train on ``meta``."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Tensor:
        return torch.ones(())  # answers Lightning's check for a batch before the first step


class Reached(Exception):  # noqa: N818  # the end of a test, no error
    """Raised after the last step, if no value was read."""


class Steps(pl.Callback):
    """End the fit after a few steps, before the epoch's results are read; optionally read a value."""

    def __init__(self, reads: bool) -> None:
        self.reads = reads

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        if self.reads:
            outputs["loss"].item()
        if trainer.global_step == 4:
            raise Reached

    def on_test_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if self.reads:
            module.evaluation.pooled["loss"].total.item()
        if trainer.test_loop.batch_progress.current.ready == 4:
            raise Reached


@pytest.fixture(autouse=True)
def nothing_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the copy of weights and results to the host after the last step."""
    monkeypatch.setattr(pl.Trainer, "_teardown", lambda self: None)


@pytest.fixture(autouse=True)
def first_batch_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the proof that the folded copy of a teacher is equal to it, which reads the outputs of the first batch."""
    monkeypatch.setattr("hsakd_pl.fast.folded.are_close", lambda found, expected: True)


def run_on_meta(verb: str, kind: str, folder: Path, reads: bool = False) -> None:
    run = pl.Trainer(
        accelerator=Unreadable(),
        strategy=OnMeta(),
        callbacks=[LastCheckpoint(folder, 10, ""), LearningRateMonitor(), Progress(), Steps(reads)],
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        max_epochs=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    getattr(run, verb)(make(kind, num_classes=10), DigitsDataModule(batch_size=16))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_no_step_reads_device_values(verb: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(Reached):
        run_on_meta(verb, kind, tmp_path)


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_reading_a_device_value_is_detected(verb: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        run_on_meta(verb, "teacher", tmp_path, reads=True)
