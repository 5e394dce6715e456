"""Frozen networks."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from hsakd_pl.files.weights import WeightFile, require_present
from hsakd_pl.modules.inputs import InputAdapter
from hsakd_pl.networks import Network, NetworkOutput


class Frozen:
    """A network in eval mode, without gradients: a teacher, or the frozen part of a trained network.

    Not an ``nn.Module``, so that the module that holds it does not register it. Other attributes are those of the
    network. ``weight_files`` are the files of its weights; ``stand_in`` is called in place of the network while
    :mod:`hsakd_pl.fast` sets it; ``adapter`` turns the student's images into those that a teacher was trained on.
    """

    def __init__(self, network: Network, *weight_files: WeightFile) -> None:
        self.network = network.requires_grad_(False)
        self.weight_files = weight_files
        self.stand_in: Callable[[Tensor], NetworkOutput] | None = None
        self.adapter: InputAdapter | None = None
        self.guard()

    def guard(self) -> None:
        """Put all layers in eval mode."""
        if any(layer.training for layer in self.network.modules()):  # a quarter of the time of eval(), every step
            self.network.eval()

    def require_weights(self) -> None:
        """Raise UsageError if a weight file of the network is missing."""
        require_present(self.weight_files)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        self.require_weights()
        if self.adapter is not None:
            images = self.adapter(images)
        return (self.stand_in or self.network.outputs)(images)

    def __getattr__(self, name: str) -> Any:
        if name == "network" or name.startswith("__"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.network, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        copied = Frozen(deepcopy(self.network, memo), *self.weight_files)
        copied.adapter = deepcopy(self.adapter, memo)
        return copied
