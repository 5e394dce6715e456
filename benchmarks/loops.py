"""The library's own training: a bare loop over a module's steps, and what ``hsakd fit`` is given to be measured.

Earlier commits of the package are measured with this file too, so it uses names only that have not changed.
"""

import os
from collections.abc import Iterator
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measuring import Measurement
from benchmarks.variants import trainer_config
from hsakd_pl import CIFAR100DataModule, HSAKDModule, StudentModule
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


class BareLoop:
    """A module as Lightning prepares it, trained without a trainer on batches that lie on the device."""

    def __init__(self, module: HSAKDModule, data: ImageDataModule, device: str, precision: str = "fp32") -> None:
        self.device = torch.device(device)
        self.half = precision == "bf16"
        self.module = module
        config = trainer_config(device, precision)
        trainer = pl.Trainer(logger=False, enable_checkpointing=False, benchmark=True, **config)
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
        module.on_fit_start()
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


class Measured(pl.Callback):
    """Take the steps of a fit as the process at the other end of a pipe asks for them, and end the fit with it.

    Args:
        pipe: file descriptor of the pipe.
        warmup: untimed steps after the first.
    """

    def __init__(self, pipe: int, warmup: int) -> None:
        self.connection = Connection(os.dup(pipe))  # closed with this object, of which the configuration makes several
        self.warmup = warmup
        self.phase: Iterator[None] = iter(())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.phase = Measurement(pl_module.device).serve(self.connection, self.warmup)
        next(self.phase)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if next(self.phase, StopIteration) is StopIteration:
            trainer.should_stop = True
