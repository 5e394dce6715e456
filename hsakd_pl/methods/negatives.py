"""Negatives for contrastive losses: for each image of a batch, others of other classes."""

from dataclasses import dataclass
from math import ceil

import pytorch_lightning as pl
import torch
from torch import Tensor

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.seeding import CONTRAST, derive_seed
from hsakd_pl.errors import UsageError


@dataclass(eq=False)
class Negatives:
    """Draws ``count`` samples of other classes for each of a batch, none twice while there are enough.

    ``labels`` (samples,) of the training split. Numbers come from (seed, epoch, step) alone, on a kind of device;
    device ``rank`` of ``world_size`` has its part of all devices' draw.
    """

    labels: Tensor
    count: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.largest = int(self.labels.bincount().max())

    @classmethod
    def in_training(cls, trainer: pl.Trainer, count: int) -> "Negatives":
        """Draw from what a trainer trains on; UsageError where that is no :class:`hsakd_pl.data.ImageDataModule`."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UsageError("negatives are drawn by indices and labels: pass fit(datamodule=...) an ImageDataModule")
        return cls(data.splits["train"].targets, count, data.seed or 0, trainer.global_rank, trainer.world_size)

    def draw(self, indices: Tensor, epoch: int, step: int) -> Tensor:
        """Give the ``indices`` (B,) of this device's samples and, for each, others: (B, 1 + count).

        Each sample takes the next ones, from a random place on, of one random order of all.
        """
        device, samples, needed = indices.device, len(self.labels), self.count + self.largest
        self.labels = self.labels.to(device)  # once
        generator = torch.Generator(device).manual_seed(derive_seed(self.seed, CONTRAST, epoch, step))
        order = torch.randperm(samples, generator=generator, device=device)
        starts = torch.randint(samples, (len(indices) * self.world_size, 1), generator=generator, device=device)
        length = ceil(needed * samples / max(samples - self.largest, 1))  # holds enough, wherever the class lies
        drawn = order[(starts[self.rank :: self.world_size] + torch.arange(length, device=device)) % samples]
        own = self.labels[drawn] == self.labels[indices, None]
        others = drawn.gather(1, own.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.count])
        return torch.cat([indices[:, None], others], 1)
