"""Cut the order of an epoch into global batches and divide them among the devices."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hsakd_pl.data.seeding import SHUFFLING, seeded_generator
from hsakd_pl.errors import UsageError


@dataclass(eq=False)
class GlobalBatchSampler:
    """Yield batches of sample indices for one device; every device gets the same number of batches.

    Device ``rank`` takes every ``world_size``-th index of a global batch. The last, smaller batch is kept. With
    ``shuffle`` (training) the order depends on (seed, epoch) and wraps around until it can be divided among the
    devices. Without (evaluation) every sample is used exactly once, and a last batch with fewer samples than devices
    joins the one before it.

    Args:
        num_samples: number of samples in the split.
        batch_size: number of samples per batch, over all devices together.
        shuffle: draw a new order in every epoch.
        seed: seed of the order.
        rank: number of this device.
        world_size: number of devices.
        epoch: epoch of the order.
        mixed_chunks: visit the chunks in random order, and shuffle the samples of this many; 0 shuffles all samples.
        chunks: number of the chunk of each sample (N,), if ``mixed_chunks`` is not 0.

    Raises UsageError if ``batch_size`` is not a multiple of ``world_size``.

    Examples:
        >>> [batch.tolist() for batch in GlobalBatchSampler(num_samples=7, batch_size=4, shuffle=False, seed=0)]
        [[0, 1, 2, 3], [4, 5, 6]]
    """

    num_samples: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    mixed_chunks: int = 0
    chunks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size={self.batch_size} cannot be divided among {self.world_size} devices (world size): "
                f"it counts the samples of all devices together, so choose a multiple of {self.world_size}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order; Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        full_batches, rest = divmod(self._num_indices(), self.batch_size)
        keeps_rest = rest >= self.world_size
        return max(1, full_batches + 1 if keeps_rest else full_batches)

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
        generator = seeded_generator(self.seed, SHUFFLING, self.epoch)
        order = torch.randperm(self.num_samples, generator=generator)
        if self.chunks is not None:
            places = torch.randperm(int(self.chunks.max()) + 1, generator=generator)  # of the chunks in this epoch
            groups = places[self.chunks[order]] // self.mixed_chunks
            order = order[groups.argsort(stable=True)]
        return order[torch.arange(self._num_indices()) % self.num_samples]
