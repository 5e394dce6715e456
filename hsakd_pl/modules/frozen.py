"""Frozen networks."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import WeightFile, require_present
from hsakd_pl.modules.inputs import InputAdapter
from hsakd_pl.networks import NetworkOutput


class Frozen:
    """A network in eval mode, without gradients: a teacher, or the frozen part of a trained network, even a layer.

    Not an ``nn.Module``, so that the module that holds it does not register it. Other attributes are those of the
    network. ``weight_files`` are the files of its weights; ``stand_in`` is called in place of the network while
    :mod:`hsakd_pl.fast` sets it; ``adapter`` turns the student's images into those that a teacher was trained on.
    """

    network: Any  # a Network, or the layer of one

    def __init__(self, network: nn.Module, *weight_files: WeightFile) -> None:
        self.network = network.requires_grad_(False)
        self.weight_files = weight_files
        self.stand_in: Callable[[Tensor], NetworkOutput] | None = None
        self.kept: dict[str, Tensor] = {}
        self.adapter: InputAdapter | None = None
        self.guard()

    def guard(self) -> None:
        """Put all layers in eval mode."""
        if any(layer.training for layer in self.network.modules()):  # a quarter of the time of eval(), every step
            self.network.eval()

    def keep(self) -> None:
        """Copy all parameters and buffers, for :meth:`restore`."""
        self.kept = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the parameters and buffers as they were kept, if they were."""
        for name, tensor in self.network.state_dict().items():
            if name in self.kept:
                tensor.copy_(self.kept[name])

    def check_frozen(self) -> None:
        """Raise UsageError if a parameter is trained."""
        if any(parameter.requires_grad for parameter in self.network.parameters()):
            raise UsageError(
                "a network that the module keeps frozen has been unfrozen, by a callback or requires_grad_: leave "
                "that out, or train the network (freeze_backbone=False)"
            )

    def require_weights(self) -> None:
        """Raise UsageError if a weight file of the network is missing."""
        require_present(self.weight_files)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        adapted = self.adapted(images)
        copy = adapted.clone() if adapted is images else adapted  # the network may change it in place
        return (self.stand_in or self.network.outputs)(copy)

    def check_side(self, side: int) -> None:
        """Raise UsageError if the network cannot take the student's images of a side, adapted."""
        if self.adapter is not None and self.adapter.image_size is not None:
            side = self.adapter.image_size
        self.network.check_image_size(side, side)

    def adapted(self, images: Tensor) -> Tensor:
        """Return the student's images as those that the network was trained on; raise UsageError without weights."""
        self.require_weights()
        return images if self.adapter is None else self.adapter(images)

    def __getattr__(self, name: str) -> Any:
        if name == "network" or name.startswith("__"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.network, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        copied = Frozen(deepcopy(self.network, memo), *self.weight_files)
        copied.adapter = deepcopy(self.adapter, memo)
        return copied


class FrozenGuard(pl.Callback):
    """Restore frozen networks that are part of a module whenever other callbacks may have changed them.

    Callbacks that average weights compute the average of frozen ones too, up to rounding, and
    ``StochasticWeightAveraging`` resets the statistics of all batch norms, of which the frozen ones are not measured
    again. Every module adds this callback, and Lightning calls it after those of the trainer.
    """

    def _frozen(self, module: Any) -> dict[str, Frozen]:
        """Return the frozen networks that are submodules, by the prefix of their names; all must be frozen still."""
        for frozen in module.frozen:
            frozen.check_frozen()
        names = {submodule: name for name, submodule in module.named_modules()}
        return {f"{names[frozen.network]}.": frozen for frozen in module.frozen if frozen.network in names}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for frozen in self._frozen(module).values():
            frozen.keep()

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            for frozen in self._frozen(pl_module).values():
                frozen.restore()

    on_train_start = on_train_epoch_start = on_train_epoch_end = on_train_end = _restore
    on_validation_start = on_validation_epoch_start = on_validation_epoch_end = on_validation_end = _restore

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        for prefix, frozen in self._frozen(module).items():
            for part in ("state_dict", "current_model_state"):  # the latter is that of WeightAveraging
                if part in checkpoint:
                    checkpoint[part] |= {f"{prefix}{name}": tensor for name, tensor in frozen.kept.items()}

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore(trainer, module)
        for frozen in self._frozen(module).values():
            frozen.kept = {}
