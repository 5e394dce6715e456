"""Frozen networks."""

from collections.abc import Callable, Iterator, Sequence, ValuesView
from copy import deepcopy
from operator import attrgetter
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.files.weights import WeightFile, require_present, shorten
from hsakd_pl.modules.build import unpacked
from hsakd_pl.modules.inputs import InputAdapter
from hsakd_pl.networks import Network, NetworkOutput


class Frozen:
    """Hold a network in eval mode, without gradients: a teacher, or the frozen part of a trained network, even a layer.

    Set as an attribute of a module of this package, alone or in lists, tuples, sets or dictionaries, the network is in
    no optimizer, checkpoint or export, stays in eval mode, and follows the module to every device and dtype. A call
    returns all outputs of a network of this package, and of another ``nn.Module`` what that returns. Of an exported
    student, or of another module of this package, it is the network, which is given images as it was trained on.

    Not an ``nn.Module``, so that the module that holds it does not register it. Other attributes are those of the
    network. ``weight_files`` are the files of its weights; ``stand_in`` is called in place of the network while
    :mod:`hsakd_pl.fast` sets it; ``adapter`` turns the student's images into those that a teacher was trained on.

    Args:
        network: network, which is frozen in place.
        weight_files: what is known of the files of its weights.

    Raises:
        UsageError: for anything but a network.

    Examples:
        >>> class TwoTeachers(methods.KDModule):
        ...     def __init__(self, *args, second, **options):
        ...         super().__init__(*args, **options)
        ...         self.second = Frozen(second)
        >>> second = create_network("resnet20", num_classes=10)
        >>> module = TwoTeachers("resnet8", "resnet14", teacher_weights="random", num_classes=10, second=second)
        >>> any(name.startswith("second") for name, _ in module.named_parameters())
        False
    """

    network: Any  # a Network, or any other module

    def __init__(self, network: nn.Module, *weight_files: WeightFile) -> None:
        valid = isinstance(network, nn.Module | Frozen)
        require(valid, "Frozen", type(network).__name__, "given a network, an nn.Module")
        self.network = unpacked(network).requires_grad_(False)
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
                "that out, or train the network (freeze_backbone=False); if its first call made layers, call it on "
                "images before"
            )

    def require_weights(self) -> None:
        """Raise UsageError if a weight file of the network is missing."""
        require_present(self.weight_files)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        adapted = self.adapted(images)
        copy = adapted.clone() if adapted is images else adapted  # the network may change it in place
        return (self.stand_in or getattr(self.network, "outputs", self.network))(copy)

    def check_side(self, side: int) -> None:
        """Raise UsageError if the network cannot take the student's images of a side, adapted."""
        if self.adapter is not None and self.adapter.image_size is not None:
            side = self.adapter.image_size
        if isinstance(self.network, Network):
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


def frozen_in(value: Any) -> Iterator[Frozen]:
    """Yield the frozen networks in the value of an attribute: itself, or those in containers at any depth."""
    if isinstance(value, Frozen):
        yield value
        return
    values = value.values() if isinstance(value, dict) else value
    for entry in values if isinstance(values, list | tuple | set | frozenset | ValuesView) else ():
        yield from frozen_in(entry)


def untrained_parts(
    module: nn.Module, frozen: Sequence[Frozen], trained: Callable[[nn.Parameter], bool]
) -> dict[str, nn.Module]:
    """Return the parts of a module none of whose parameters is trained, by name.

    Its ``networks``, which a callback may freeze for a time, and those with a frozen network are left out.

    Args:
        module: module with its parts.
        frozen: frozen networks.
        trained: whether a parameter is trained.
    """
    networks = {entry.network for entry in frozen}
    parts = {}
    for name, part in module.named_children():
        parameters = [*part.parameters()]
        if name == "networks" or not parameters or not networks.isdisjoint(part.modules()):
            continue
        if not any(map(trained, parameters)):
            parts[name] = part
    return parts


def refuse_untrained(parts: dict[str, nn.Module]) -> None:
    """Raise UsageError for a part of a module that is not trained: a network to keep frozen."""
    for name, part in parts.items():
        raise UsageError(
            f"{name} ({type(part).__name__}) is part of the module, which saves it and sets it to train mode, but it "
            f"is not trained: keep a network frozen by self.{name} = Frozen(network) (from hsakd_pl), or put layers "
            "that a later epoch trains into an nn.ModuleList"
        )


class FrozenGuard(pl.Callback):
    """Restore frozen networks that are part of a module whenever other callbacks may have changed them.

    It also refuses parts of a module that are not trained, at the start of a fit and after its first backward pass,
    when a ``ModuleList`` may still be trained in a later epoch and the log names it, and weights that this pass made,
    which are in no optimizer.

    Callbacks that average weights compute the average of frozen ones too, up to rounding, and
    ``StochasticWeightAveraging`` resets the statistics of all batch norms, of which the frozen ones are not measured
    again. Every module adds this callback, and Lightning calls it after those of the trainer.
    """

    _is_first_step = False
    _parameters: frozenset[nn.Parameter] = frozenset()  # those that there are before the first step

    def _frozen(self, module: Any) -> dict[str, Frozen]:
        """Return the frozen networks that are submodules, by the prefix of their names; all must be frozen still."""
        for frozen in module.frozen:
            frozen.check_frozen()
        names = {submodule: name for name, submodule in module.named_modules()}
        return {f"{names[frozen.network]}.": frozen for frozen in module.frozen if frozen.network in names}

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        for frozen in self._frozen(module).values():
            frozen.keep()
        refuse_untrained(untrained_parts(module, module.frozen, attrgetter("requires_grad")))
        self._is_first_step = True
        self._parameters = frozenset(module.parameters())

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._is_first_step:
            self._check_made(trainer, pl_module)
            parts = untrained_parts(pl_module, pl_module.frozen, lambda parameter: parameter.grad is not None)
            lists = [name for name, part in parts.items() if isinstance(part, nn.ModuleList)]
            refuse_untrained({name: part for name, part in parts.items() if name not in lists})
            for name in lists:
                rank_zero_info(
                    f"{name} (ModuleList) is not trained in the first step, but it is saved and in train mode: if its "
                    f"networks are to stay frozen, set self.{name} = [Frozen(network), ...] (from hsakd_pl)"
                )
            self._is_first_step = False
            self._parameters = frozenset()

    def _check_made(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raise UsageError for weights that the first forward pass made."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        optimized = self._parameters.union(parameter for group in groups for parameter in group["params"])
        later = [name for name, parameter in module.named_parameters() if parameter not in optimized]
        if later:
            raise UsageError(
                f"{counted(len(later), 'weight')} were made in the first step ({shorten(later)}), too late to be "
                "trained: call the network on images before, such as network(torch.zeros(2, 3, 32, 32))"
            )

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
