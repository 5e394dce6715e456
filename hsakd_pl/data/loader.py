"""A loader that Lightning can stop and resume in the middle of an epoch."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from torch import Tensor

from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.errors import UsageError

SAMPLER_STATE = (
    "num_samples",
    "batch_size",
    "seed",
    "mixed_chunks",
)  # attributes of the sampler that decide which images a batch has
Batch = tuple[Tensor, Tensor | list[tuple[str, str]]]  # uint8 images (B, 3, S, S) with labels (B,) or (path, error)


class BatchSource(Protocol):
    """Make the batches of an epoch."""

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""


class ResumableLoader:
    """Iterate over the batches of ``source`` in the order of ``sampler``.

    This is deliberately not a ``torch.utils.data.DataLoader``, whose sampler Lightning would replace.
    Lightning calls ``sampler.set_epoch`` before every epoch and stores ``state_dict`` in its checkpoints.

    Args:
        source: makes the batches.
        sampler: yields the indices of each batch.
        with_indices: append the samples' indices (B,) to every batch.
        paths: paths of all samples, where they are known.
    """

    def __init__(
        self,
        source: BatchSource,
        sampler: GlobalBatchSampler,
        with_indices: bool = False,
        paths: Sequence[str] | None = None,
    ) -> None:
        self.source = source
        self.sampler = sampler
        self.batch_sampler = sampler  # Lightning looks for either name
        self.with_indices = with_indices
        self.paths = paths
        self._yielded = 0
        self._resumed_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch | tuple[Any, ...]]:
        # A generator, hence lazy: Lightning creates the first iterator before it sets the epoch.
        epoch = self.sampler.epoch
        if self._resumed_epoch != epoch:
            self._yielded = 0
        self._resumed_epoch = None
        order = list(islice(self.sampler, self._yielded, None))
        for indices, batch in zip(order, self.source.make_batches(epoch, order), strict=True):
            self._yielded += 1
            yield (*batch, indices) if self.with_indices else batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of batches yielded in it, and what decides their content.

        Batches that workers have prefetched do not count.
        """
        sampler_state = {name: getattr(self.sampler, name) for name in SAMPLER_STATE}
        return {"epoch": self.sampler.epoch, "batches": self._yielded} | sampler_state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches that were yielded before, if the stored epoch is the next one.

        Raises UsageError if those batches came from other data, or if the state is damaged.
        """
        if not _is_state(state):
            raise UsageError(f"the checkpoint's state of the loader is damaged ({state!s:.80}): resume another one")
        self._resumed_epoch = state["epoch"]
        self._yielded = state["batches"]
        for name in SAMPLER_STATE:
            current = getattr(self.sampler, name)
            stored = state.get(name, current)
            if stored != current and 0 < self._yielded < math.ceil(state["num_samples"] / state["batch_size"]):
                raise UsageError(
                    f"the epoch that is resumed began with {name} {stored}, not {current}: finish it with the same data"
                )


def _is_state(state: Any) -> bool:
    """Return True for what :meth:`ResumableLoader.state_dict` may have returned."""
    if not isinstance(state, dict) or not {"epoch", "batches"} <= state.keys():
        return False
    numbers = [state.get(name, 0) for name in ("epoch", "batches", *SAMPLER_STATE)]
    return all(type(number) is int and number >= 0 for number in numbers)
