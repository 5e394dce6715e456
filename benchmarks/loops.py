"""The library's own training: a bare loop over a module's steps, and the whole of ``python main.py fit``."""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.cases import Case
from benchmarks.settings import Settings
from hsakd_pl import HSAKDModule
from hsakd_pl.cli import HSAKDCLI
from hsakd_pl.data import ImageDataModule

RESIDENT_BATCHES = 8  # that the bare loop has on the device and goes through in turn


class BareLoop:
    """A module as Lightning prepares it, trained without a trainer on batches that lie on the device."""

    def __init__(self, case: Case, data: ImageDataModule, settings: Settings) -> None:
        self.device, self.autocast = settings.torch_device, settings.autocast
        self.module = prepared(case.module(num_classes=data.num_classes, **settings.module_options), settings)
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        loader = islice(data.train_dataloader(), RESIDENT_BATCHES)
        on_device = [(images.to(self.device), torch.as_tensor(labels).to(self.device)) for images, labels in loader]
        self.batches = cycle([data.on_after_batch_transfer(batch, 0) for batch in on_device])

    def step(self) -> None:
        """One batch, as Lightning's loop treats it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.module.training_step(next(self.batches), 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def prepared(module: HSAKDModule, settings: Settings) -> HSAKDModule:
    """The module on its device, in training mode, after the hooks that come before a fit's first step."""
    module.trainer = pl.Trainer(
        benchmark=True,  # cuDNN's, as in a fit
        logger=False,
        enable_checkpointing=False,
        **settings.trainer_config,
    )
    module.setup("fit")
    module.to(settings.torch_device)
    module.on_fit_start()
    module.trainer, module.means = None, {}  # nobody to log to
    module.train()
    return module


class Phases(pl.Callback):
    """Takes a phase through a fit, one training step at every ``yield``, and ends the fit with it."""

    def __init__(self, phase: Iterator[None]) -> None:
        self.phase = phase

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        next(self.phase)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if next(self.phase, StopIteration) is StopIteration:
            trainer.should_stop = True


class FitWith(HSAKDCLI):
    """The command line, with one more callback."""

    def __init__(self, callback: pl.Callback, args: list[str]) -> None:
        self.callback = callback
        super().__init__(
            HSAKDModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            args=args,
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.callback)  # type: ignore[attr-defined]  # set without a declaration
        return trainer


def fit(case: Case, settings: Settings, callback: pl.Callback, **trainer: Any) -> None:
    """Train as ``python main.py fit`` does, logs and checkpoints in a folder that is then removed.

    What the fit prints goes nowhere; a single batch is validated, since validation is no part of a step.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "model": case.config(**settings.module_options),
            "data": settings.data_config,
            "trainer": {**settings.trainer_config, "limit_val_batches": 1, "default_root_dir": folder, **trainer},
        }
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config))
        with contextlib.redirect_stdout(io.StringIO()):
            FitWith(callback, ["fit", "--config", str(file)])
