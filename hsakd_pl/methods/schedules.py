"""Let the weight of a loss term, or a factor inside a loss, follow the epochs."""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

Schedule = Callable[[int], float]  # maps an epoch, counted from 1, to a factor


def linear_warmup(epoch: int, epochs: int) -> float:
    """Return min(epoch / epochs, 1), the factor of a weight that grows linearly; 1 for 0 epochs.

    Args:
        epoch: current epoch, counted from 1.
        epochs: epoch from which on the factor is 1.

    Examples:
        >>> [linear_warmup(epoch, epochs=4) for epoch in (1, 4, 9)]
        [0.25, 1.0, 1.0]
    """
    return min(epoch / epochs, 1.0) if epochs else 1.0


class ScheduledFactor(nn.Module):
    """Hold a factor that follows the epochs as a tensor, for use inside a loss.

    As a buffer it moves with the module, and a step that is compiled reads the new value without being compiled again.
    It is not saved: every training step of a :class:`DistilledModule` sets it.

    Args:
        schedule: maps an epoch, counted from 1, to the factor; it must be picklable, as functions of a module and
            ``functools.partial`` are.

    Examples:
        >>> from functools import partial
        >>> factor = ScheduledFactor(partial(linear_warmup, epochs=4))
        >>> factor.set_epoch(3)
        >>> factor()
        tensor(0.7500)
    """

    value: Tensor

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("value", torch.tensor(schedule(1)), persistent=False)

    def set_epoch(self, epoch: int) -> None:
        """Set the factor to that of an epoch, counted from 1."""
        self.value.fill_(self.schedule(epoch))

    def forward(self) -> Tensor:
        """Return the factor of the current epoch, a scalar."""
        return self.value
