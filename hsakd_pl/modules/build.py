"""From what a user passes to networks."""

from collections.abc import Sequence

import torch.nn as nn

from hsakd_pl.errors import UsageError
from hsakd_pl.networks import StagedBackbone, create_network
from hsakd_pl.weights import describe, load_weights


def build_network(network: str | nn.Module, num_classes: int, weights: str | None, branches: bool = True) -> nn.Module:
    """The given network, or one made by name, with the weights of a file where one is named."""
    built = create_network(network, num_classes, branches) if isinstance(network, str) else network
    return built if weights is None else load_weights(built, weights)


def with_branches(network: nn.Module) -> nn.Module:
    """The network itself; UsageError if it is a backbone alone."""
    if isinstance(network, StagedBackbone):
        raise UsageError(f"network: {describe(network)} has no branches: use create_network(name, branches=True)")
    return network


def freeze(module: nn.Module) -> nn.Module:
    """Take a module out of training: no gradients, eval mode."""
    return module.requires_grad_(False).eval()


def not_by_name(**arguments: str | nn.Module | Sequence[str | nn.Module]) -> list[str]:
    """Arguments that hold objects, built networks and the schedule: no hyperparameters, only their state is saved."""
    firsts = {name: value if isinstance(value, str | nn.Module) else value[0] for name, value in arguments.items()}
    return ["lr_scheduler", *(name for name, first in firsts.items() if not isinstance(first, str))]
