"""A loader that Lightning can stop and resume in the middle of an epoch."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.errors import UsageError

ORDER = ("num_samples", "batch_size", "seed")  # what decides which images a batch has
Batch = tuple[Tensor, Tensor | list[tuple[str, str]]]  # uint8 images (B, 3, S, S) with labels (B,) or (path, error)


class ResumableLoader:
    """Batches in the order of ``sampler``, made by ``make_batches(epoch, list of index tensors)``.

    Deliberately no ``torch.utils.data.DataLoader``: Lightning would put a sampler of its own into that.
    Lightning calls ``sampler.set_epoch`` before every epoch and stores ``state_dict`` in its checkpoints.
    """

    def __init__(
        self, make_batches: Callable[[int, list[Tensor]], Iterator[Batch]], sampler: GlobalBatchSampler
    ) -> None:
        self.make_batches = make_batches
        self.sampler = self.batch_sampler = sampler  # Lightning looks at either name
        self.indexed = False  # whether batches end in the samples' indices
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
        for indices, batch in zip(order, self.make_batches(epoch, order), strict=True):
            self._yielded += 1
            yield (*batch, indices) if self.indexed else batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it, and of what; what workers have prefetched does not count."""
        order = {name: getattr(self.sampler, name) for name in ORDER}
        return {"epoch": self.sampler.epoch, "batches": self._yielded, **order}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the stored epoch, if that is the one asked for next, after the stored number of batches.

        Raises UsageError where those batches were of other data.
        """
        self._resumed_epoch = state["epoch"]
        self._yielded = state["batches"]
        for name in ORDER:
            old, new = state.get(name), getattr(self.sampler, name)
            if old not in (None, new) and 0 < self._yielded < math.ceil(state["num_samples"] / state["batch_size"]):
                raise UsageError(
                    f"the epoch that is resumed was begun with {name} {old}, not {new}: finish it with the same data"
                )
