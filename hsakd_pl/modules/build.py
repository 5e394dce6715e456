"""From what a user passes to networks."""

import inspect
from typing import Any

import torch.nn as nn

from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.optimization import REPLACED
from hsakd_pl.networks import Network, as_network, create_network
from hsakd_pl.networks.timm import pretrained_weights
from hsakd_pl.networks.weights import describe, load_weights
from hsakd_pl.ops import ROTATIONS, Transforms, named_transforms

RANDOM = "random"  # in a file's place: the weights of a fresh network
PRETRAINED = "pretrained"  # in a file's place: the weights that timm publishes
Net = str | nn.Module  # a name, or a network


def build_network(
    network: Net,
    num_classes: int,
    branches: bool,
    weights: str | None = None,
    transforms: str | Transforms | None = None,
    new_head: bool = False,
) -> Network:
    """Make a network by name, or take the given one, with the weights of a file where one is named.

    Without ``branches`` a network that has some is taken without them; with ``branches`` it must have some. Raises
    UsageError for that, and where a given network has other ``transforms``.
    """
    wanted = named_transforms(transforms) if isinstance(transforms, str) else transforms
    built = create_network(network, num_classes, branches, wanted or ROTATIONS) if isinstance(network, str) else network
    found = as_network(built, num_classes)
    missing = load(found, weights, new_head)
    if wanted not in (None, found.transforms):
        raise UsageError("transforms: a network that is given has its own: choose them in create_network")
    if branches and not len(found.branches):
        raise UsageError(f"network: {describe(found)} has no branches: use create_network(name, branches=True)")
    found = found if branches else found.without_branches
    found.missing = missing
    return found


def load(networks: Any, weights: str | None, new_head: bool = False) -> UsageError | None:
    """Load a file into a network or peers; gives the error where it is missing, for a checkpoint may make up for it.

    With ``new_head`` the last layers of the heads stay fresh. Raises UsageError for that without weights.
    """
    if weights in (None, RANDOM):
        if new_head:
            raise UsageError("new_head has no effect without weights: all heads are new")
        return None
    try:
        if weights != PRETRAINED:
            load_weights(networks, weights, new_head=new_head)
            return None
        peers = networks if isinstance(networks, list) else [networks]
        fetched = [(peer, pretrained_weights(str(peer.name))) for peer in peers]
    except UsageError as error:
        if local_path("weights", str(weights)).exists():
            raise
        return error
    for peer, found in fetched:
        load_weights(peer, found, new_head=new_head)
    return None


def require_trained(option: str, network: str | nn.Module, weights: str | None) -> None:
    """Raise UsageError if a network by name would take a trained one's place without weights."""
    if isinstance(network, str) and weights is None:
        timm = f", or {PRETRAINED}" if network.startswith("timm:") else ""
        raise UsageError(f"{option}: {network} would be untrained: name the file of its weights, or {RANDOM}{timm}")


def show_options(module: type, *hidden: str) -> None:
    """Let ``help`` show what a module class's ``**options`` are, but those ``hidden``, which it decides itself."""
    found: dict[str, inspect.Parameter] = {}
    for base in (each for each in module.__mro__ if "__init__" in vars(each)):
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [each for each in own if each.kind is not each.VAR_KEYWORD]
        shown = named if base is module else [each.replace(kind=each.KEYWORD_ONLY) for each in named]
        found |= {each.name: each for each in shown if each.name not in {*found, *hidden}}
        if len(named) == len(own):
            break
    module.__signature__ = inspect.Signature([*found.values()])  # type: ignore[attr-defined]


def forget(module: HSAKDModule, *options: str) -> None:
    """Leave options out of the hyperparameters that a class passes to its base but does not take."""
    for option in options:
        module.hparams.pop(option, None)


def not_by_name(module: HSAKDModule, **arguments: Any) -> list[str]:
    """Name the arguments that are no hyperparameters: objects, and what an optimizer of the user's replaces."""
    firsts = {name: value[0] if isinstance(value, list | tuple) else value for name, value in arguments.items()}
    objects = [name for name, first in firsts.items() if not isinstance(first, str | None)]
    return ["optimizer", "lr_scheduler", *objects, *(REPLACED if module.optimizer else ())]
