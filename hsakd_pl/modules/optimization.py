"""SGD and its learning rates, as in the published recipes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR

from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.budget import steps_of_epochs
from hsakd_pl.networks import Network

OptimizerMaker = Callable[[Iterable[Tensor]], Optimizer]
Scheduler = Callable[[Optimizer], LRScheduler]

REPLACED = ("lr", "momentum", "nesterov", "weight_decay")  # replaced by a user's optimizer
RATES = ("lr", "backbone_lr", "momentum", "nesterov", "weight_decay", "milestones", "warmup_epochs")


def check_rates(
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    milestones: Sequence[int],
    warmup_epochs: int,
    backbone_lr: float | None = None,
) -> None:
    """Raise UsageError for the first option that is out of range."""
    options = {
        "lr": lr,
        "backbone_lr": backbone_lr or 0.0,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
    }
    for option, value in options.items():
        require(0 <= value < math.inf, option, value, "at least 0, and finite")
    require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1")
    require(momentum > 0 or not nesterov, "nesterov", nesterov, "off without momentum")
    require(all(epoch >= 0 for epoch in milestones), "milestones", milestones, "epochs, of at least 0")


def check_same_rates(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError for an option of a resumed run that the state of its optimizer or schedule would overrule."""
    for option in RATES:
        if option not in before or option not in now:
            continue
        old = before[option]
        new = now[option]
        same = [*old] == [*new] if isinstance(old, Sequence) and isinstance(new, Sequence) else old == new
        if not same:
            raise UsageError(
                f"{option} is {new}, but the resumed run was started with {old} and keeps it: leave the option "
                "unchanged, or start a new run from the weights"
            )


def parameter_groups(parameters: Sequence[Tensor], networks: Iterable[Network], backbone_lr: float | None) -> Any:
    """Return the parameters, with a second group for the backbone if it has its own learning rate.

    The first group then holds the branches and the last layer of the class head. Raises UsageError for a network
    without a linear layer, which would be its head.
    """
    if backbone_lr is None:
        return parameters
    heads = set[Tensor]()
    for network in networks:
        if not network.output_layers:
            raise UsageError("backbone_lr: the network has no linear layer, which would be its head")
        for part in (network.get_submodule(network.output_layers[0]), *network.branches):
            heads.update(part.parameters())
    head = [parameter for parameter in parameters if parameter in heads]
    backbone = [parameter for parameter in parameters if parameter not in heads]
    return [{"params": head}, {"params": backbone, "lr": backbone_lr}]


def can_fuse(module: pl.LightningModule) -> bool:
    """Return True if SGD can be fused: on a CPU or a CUDA device, without gradient clipping.

    Lightning cannot clip gradients for a fused optimizer in mixed precision, since that unscales them itself.
    """
    clipped = module._trainer is not None and bool(module._trainer.gradient_clip_val)
    return module.device.type in ("cpu", "cuda") and not clipped


def one_schedule(optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """Let a schedule step once per epoch, on ``val/loss`` if it watches a metric and names no other."""
    monitor = getattr(schedule, "monitor", "val/loss")
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch", "monitor": monitor}}


def with_warmup(optimizer: Optimizer, milestones: Sequence[int], epochs: int, trainer: pl.Trainer) -> Any:
    """Warm up linearly, step by step, over ``epochs``; then divide the rate by 10 at each milestone.

    Raises UsageError if the number of steps per epoch is unknown.
    """
    steps = steps_of_epochs(trainer, range(epochs))
    if steps is None:
        raise UsageError(
            f"warmup_epochs is {epochs}, but the training loader has no length: set warmup_epochs 0 and lr_scheduler, "
            "or trainer.limit_train_batches to a number of batches"
        )
    decay = MultiStepLR(optimizer, [epochs + epoch for epoch in milestones], gamma=0.1)
    warmup = LinearLR(optimizer, 1 / max(1, steps), total_iters=max(1, steps - 1))
    return [optimizer], [{"scheduler": warmup, "interval": "step"}, {"scheduler": decay, "interval": "epoch"}]
