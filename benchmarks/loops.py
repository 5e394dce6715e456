"""The library's own training: a bare loop over a module's steps, and the whole of ``python main.py fit``."""

import contextlib
import io
import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cases import Case
from hsakd_pl import CIFAR100DataModule, HSAKDModule, StudentModule
from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.networks import NetworkOutput

RESIDENT_BATCHES = 8  # batches that the bare loop keeps on the device and cycles through


class SyntheticDataModule(CIFAR100DataModule):
    """Images of noise in 100 classes, augmented, batched and normalised like CIFAR-100.

    Args:
        images: number of training images.
        batch_size: images per batch.
    """

    num_classes = 100

    def __init__(self, images: int = 50_000, batch_size: int = 64) -> None:
        super().__init__("/nowhere", batch_size=batch_size)
        self.images = images

    def read(self, train: bool) -> Split:
        generator = torch.Generator().manual_seed(int(train))
        count = self.images if train else max(1, self.images // 100)
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(self.num_classes, (count,), generator=generator))


class WithAttention(StudentModule):
    """HSAKD and a term on the feature maps (attention transfer), to see what an added term costs."""

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        distances = []
        for student_map, teacher_map in zip(student.features, teacher.features, strict=True):
            difference = attention(student_map) - attention(teacher_map)
            distances.append(difference.square().sum(1).mean())
        return super().terms(student, teacher, labels) | {"loss_attention": torch.stack(distances).sum()}


def attention(feature_map: Tensor) -> Tensor:
    """Return the normalised attention (B, H * W) of a feature map (B, C, H, W)."""
    return normalize(feature_map.norm(dim=1).square().flatten(1))


def trainer_config(options: Namespace) -> dict[str, Any]:
    """Return the trainer's arguments that differ from the defaults of ``python main.py fit``."""
    precision = {"precision": options.precision} if options.precision else {}
    return {"accelerator": {"cuda": "gpu"}.get(options.device, options.device), "devices": 1, **precision}


class BareLoop:
    """A module as Lightning prepares it, trained without a trainer on batches that lie on the device."""

    def __init__(self, module: HSAKDModule, data: ImageDataModule, options: Namespace) -> None:
        self.device = torch.device(options.device)
        self.half = options.precision == "bf16-mixed"
        self.module = module
        trainer = pl.Trainer(logger=False, enable_checkpointing=False, benchmark=True, **trainer_config(options))
        trainer.datamodule = data  # type: ignore[attr-defined]  # as fit sets it
        trainer.strategy.connect(module)
        module.trainer = trainer
        data.trainer = trainer
        module.setup("fit")
        callbacks = module.configure_callbacks()
        for callback in callbacks:
            callback.setup(trainer, module, "fit")
        module.to(self.device).train()
        for callback in callbacks:
            callback.on_fit_start(trainer, module)
        self.optimizer = module.configure_optimizers()["optimizer"]
        batches = islice(data.train_dataloader(), RESIDENT_BATCHES)
        on_device = [tuple(torch.as_tensor(part).to(self.device) for part in batch) for batch in batches]
        self.batches = cycle([data.on_after_batch_transfer(batch, 0) for batch in on_device])
        module.trainer = None  # there is nothing to log to

    def step(self) -> None:
        """Train on one batch, as Lightning's loop treats it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.module.training_step(next(self.batches), 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Phases(pl.Callback):
    """Run a phase during a fit, one training step at every ``yield``, and end the fit with it."""

    def __init__(self, phase: Iterator[None]) -> None:
        self.phase = phase

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        next(self.phase)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if next(self.phase, StopIteration) is StopIteration:
            trainer.should_stop = True


def fit(case: Case, options: Namespace, callback: pl.Callback) -> None:
    """Train as ``python main.py fit`` does, in a folder that is then removed; a single batch is validated."""

    class FitWith(HSAKDCLI):
        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(callback)  # type: ignore[attr-defined]  # set without a declaration
            return trainer

    arguments = {"images": options.images, "batch_size": options.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        data = {"class_path": "benchmarks.loops.SyntheticDataModule", "init_args": arguments}
        trainer = {**trainer_config(options), "limit_val_batches": 1, "default_root_dir": folder}
        config = {"model": case.config(compile=options.compile), "data": data, "trainer": trainer}
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config))
        with contextlib.redirect_stdout(io.StringIO()):
            FitWith(args=["fit", "--config", str(file)])
