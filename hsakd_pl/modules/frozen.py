"""Networks that never learn."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from hsakd_pl.networks import Network, NetworkOutput


class Frozen:
    """A network in eval mode, without gradients: a teacher, or the frozen part of a network that is trained.

    A plain class, so that nothing of it is registered in the module that holds it. What else is asked of it, its
    network answers. ``stand_in``: what answers in the network's place while :mod:`hsakd_pl.fast` has it so.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False)
        self.stand_in: Callable[[Tensor], NetworkOutput] | None = None
        self.guard()

    def guard(self) -> None:
        """Bring back to eval mode whatever has left it."""
        if any(layer.training for layer in self.network.modules()):  # a quarter of the time of eval(), every step
            self.network.eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        if self.network.missing is not None:
            raise self.network.missing
        return (self.stand_in or self.network.outputs)(images)

    def __getattr__(self, name: str) -> Any:
        if name == "network" or name.startswith("__"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.network, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return Frozen(deepcopy(self.network, memo))
