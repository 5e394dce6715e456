"""The order of an epoch, cut into global batches and dealt out to the devices."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hsakd_pl.data.seeding import ORDER, seeded_generator
from hsakd_pl.errors import UsageError


@dataclass(eq=False)
class GlobalBatchSampler:
    """Batches of sample indices for one device; every device gets the same number of batches.

    ``batch_size`` counts the samples of all devices together: device ``rank`` takes every ``world_size``-th
    index of a global batch. The last, smaller batch is kept. With ``shuffle`` (training) the order depends on
    (seed, epoch) and wraps around until it divides among the devices. Without (evaluation) every sample comes
    exactly once, and a rest too small to reach every device joins the batch before it.

    Raises UsageError where ``batch_size`` does not divide among the devices.
    """

    num_samples: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int = 0
    world_size: int = 1
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size={self.batch_size} does not divide among {self.world_size} devices (world size): "
                f"it counts the samples of all devices together, so choose a multiple of {self.world_size}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self._num_indices(), self.batch_size)
        return max(1, full + (rest >= self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        cuts = list(range(self.batch_size, len(self) * self.batch_size, self.batch_size))
        for batch in self._order().tensor_split(cuts):
            yield batch[self.rank :: self.world_size]

    def _num_indices(self) -> int:
        multiple = self.world_size if self.shuffle else 1
        return math.ceil(self.num_samples / multiple) * multiple

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        order = torch.randperm(self.num_samples, generator=seeded_generator(self.seed, ORDER, self.epoch))
        return order[torch.arange(self._num_indices()) % self.num_samples]
