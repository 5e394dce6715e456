"""SGD and its learning rates, as in the published recipes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR, ReduceLROnPlateau

from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.budget import steps_of_epochs
from hsakd_pl.networks import Network
from hsakd_pl.networks.heads import is_part
from hsakd_pl.recipes.recipe import RATES

OptimizerMaker = Callable[[Iterable[Tensor]], Optimizer]
Scheduler = Callable[[Optimizer], LRScheduler]

MOST_STEPS = 500  # of a schedule that is tried
REPLACED = ("lr", "momentum", "nesterov", "weight_decay")  # replaced by a user's optimizer


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

    The first group then holds the branches and the last layers of the class head. Raises UsageError for a network whose
    head cannot be found.
    """
    if backbone_lr is None:
        return parameters
    heads = set[Tensor]()
    for network in networks:
        layers = network.output_layers
        if not layers or not layers[0]:
            raise UsageError(
                "backbone_lr: the head of the network is unknown, no layer returns its logits: leave backbone_lr out"
            )
        heads.update(weight for name, weight in network.named_parameters() if is_part(name, layers[0]))
        for branch in network.branches:
            heads.update(branch.parameters())
    head = [parameter for parameter in parameters if parameter in heads]
    backbone = [parameter for parameter in parameters if parameter not in heads]
    return [{"params": head}, {"params": backbone, "lr": backbone_lr}]


def make_optimizer(maker: Callable[[Any], Optimizer], parameters: Any) -> Optimizer:
    """Return the optimizer that a function makes; raises UsageError, naming it, if it does not take the parameters."""
    try:
        return maker(parameters)
    except ValueError as error:  # of the optimizer, such as torch.optim.Muon, which only takes matrices
        raise optimizer_error(name_of(maker), error) from error


def optimizer_error(name: str, error: ValueError) -> UsageError:
    """Return the error for parameters that an optimizer refuses."""
    reason = " ".join(str(error).split())
    return UsageError(
        f"optimizer: {name} refuses the network's parameters or its options ({reason:.200}): choose others"
    )


def name_of(maker: Any) -> str:
    """Return the name of a class or function, or of that in a ``functools.partial``."""
    while isinstance(maker, partial):
        maker = maker.func
    return getattr(maker, "__name__", type(maker).__name__)


def check_schedule(
    make_schedule: Scheduler, build_optimizer: Callable[[Any], Optimizer], backbone_lr: float, epochs: int | None
) -> None:
    """Raise UsageError if a schedule sets the rates of all groups itself, so that ``backbone_lr`` has no effect.

    The schedule is run on two small parameters, with ``backbone_lr`` and with half of it. It overwrites the rate if the
    backbone's is the same in both, unless that is the lowest rate, at which a schedule may end, or follows the head's.

    Args:
        make_schedule: makes the schedule from an optimizer.
        build_optimizer: makes the optimizer from groups of parameters.
        backbone_lr: learning rate of the second group.
        epochs: number of epochs of the fit, if it is known.
    """
    steps = min(epochs, MOST_STEPS) if epochs and epochs > 0 else MOST_STEPS
    head, backbone, name = rates_under(make_schedule, build_optimizer, backbone_lr, steps)
    _, halved, _ = rates_under(make_schedule, build_optimizer, backbone_lr / 2, steps)
    ratio = backbone_lr / head[0] if head[0] else 0.0
    if all(math.isclose(rate, ratio * head_rate) for head_rate, rate in zip(head[1:], backbone[1:], strict=True)):
        return
    same = [rate for rate, other in zip(backbone[1:], halved[1:], strict=True) if rate == other]
    if len(same) == len(backbone) - 1 or any(rate > min(backbone[1:]) for rate in same):
        raise UsageError(
            f"backbone_lr has no effect: {name} sets the learning rates of all groups itself: choose a schedule that "
            "multiplies them, or leave backbone_lr out"
        )


def rates_under(
    make_schedule: Scheduler, build_optimizer: Callable[[Any], Optimizer], backbone_lr: float, steps: int
) -> tuple[list[float], list[float], str]:
    """Return the rates of head and backbone, first without and then in each step of a schedule, and its name."""
    groups: list[dict[str, Any]] = [{"params": [torch.zeros(2, 2, requires_grad=True)]} for _ in range(2)]
    groups[1]["lr"] = backbone_lr
    optimizer = build_optimizer(groups)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    schedule: Any = make_schedule(optimizer)
    with suppress(ValueError):  # of OneCycleLR, after its last step
        for _ in range(steps):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(1.0)
            else:
                schedule.step()
    head, backbone = ([step[group] for step in rates] for group in range(2))
    return head, backbone, type(schedule).__name__


def can_fuse(module: pl.LightningModule) -> bool:
    """Return True if SGD can be fused: on a CPU or a CUDA device, without gradient clipping and complex parameters.

    Lightning cannot clip gradients for a fused optimizer in mixed precision, since that unscales them itself.
    """
    clipped = module._trainer is not None and bool(module._trainer.gradient_clip_val)
    has_complex = any(parameter.is_complex() for parameter in module.parameters())
    return module.device.type in ("cpu", "cuda") and not clipped and not has_complex


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
