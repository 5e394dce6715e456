"""Negatives for contrastive losses: for each image of a batch, others of other classes."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from hsakd_pl.data.seeding import CONTRAST, derive_seed


@dataclass(eq=False)
class Negatives:
    """Draws ``count`` samples of other classes for each of a batch, none twice while there are enough.

    ``labels`` (samples,) of the training split. Numbers come from (seed, epoch, step) alone, on a kind of device.
    """

    labels: Tensor
    count: int
    seed: int

    def __post_init__(self) -> None:
        self.largest = int(self.labels.bincount().max())

    def draw(self, indices: Tensor, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Give for the samples at ``indices`` (B,) of this device others, (B, count), that it has of all devices' draw.

        Each sample takes the next ones, from a random place on, of one random order of all.
        """
        device, samples, needed = indices.device, len(self.labels), self.count + self.largest
        self.labels = self.labels.to(device)  # once
        generator = torch.Generator(device).manual_seed(derive_seed(self.seed, CONTRAST, epoch, step))
        order = torch.randperm(samples, generator=generator, device=device)
        starts = torch.randint(samples, (len(indices) * world_size, 1), generator=generator, device=device)
        length = ceil(needed * samples / max(samples - self.largest, 1))  # holds enough, wherever the class lies
        drawn = order[(starts[rank::world_size] + torch.arange(length, device=device)) % samples]
        own = self.labels[drawn] == self.labels[indices, None]
        return drawn.gather(1, own.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.count])
