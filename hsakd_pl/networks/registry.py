"""Networks by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch.nn as nn

from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network, as_network
from hsakd_pl.networks.timm import make_timm, pretrained_weights
from hsakd_pl.networks.weights import load_weights
from hsakd_pl.ops import ROTATIONS, Transforms

BackboneMaker = Callable[[int], StagedBackbone]
_REGISTRY: dict[str, BackboneMaker] = {}


def register_network(name: str) -> Callable[[BackboneMaker], BackboneMaker]:
    """Decorator that enters a backbone class or function, called with the number of classes, under ``name``."""

    def register(make_backbone: BackboneMaker) -> BackboneMaker:
        if name in _REGISTRY:
            raise UsageError(f"register_network: the name {name!r} is taken, choose another")
        _REGISTRY[name] = make_backbone
        return make_backbone

    return register


def list_networks() -> list[str]:
    """Names that :func:`create_network` knows, sorted."""
    return sorted(_REGISTRY)


def create_network(
    name: str,
    num_classes: int = 100,
    branches: bool = True,
    transforms: Transforms = ROTATIONS,
    pretrained: bool | str | Path = False,
) -> Network:
    """Build a network with fresh weights.

    ``name``: registered; ``timm:`` and a model of timm's; or the import path of a class or function that makes a module
    of ``num_classes``. With ``branches``, one after each stage, it returns a :class:`NetworkOutput` for images
    (B, 3, S, S); without, logits (B, N) alone. ``transforms``: those whose joint labels the branches learn.
    ``pretrained``: loads the weights that timm publishes, or a file's; heads of other classes stay fresh. Raises
    UsageError for an unknown name, and where ``branches`` cannot be had.
    """
    if name.startswith("timm:"):
        made: nn.Module = make_timm(name.removeprefix("timm:"), num_classes, branches)
    else:
        made = _REGISTRY[name](num_classes) if name in _REGISTRY else _import(name)(num_classes=num_classes)
    network = as_network(made, num_classes)
    network.without_branches.name = network.name = name
    if isinstance(network, StagedBackbone):
        network.transforms = transforms
        network = HSAKDNet(network, transforms) if branches else network
    elif branches and not network.branches:
        raise UsageError(
            f"network {name} is no StagedBackbone, which branches need: derive it from that, or leave the branches out "
            "(branches=False, joint_kd_weight=0)"
        )
    network = network if branches else network.without_branches
    if pretrained:
        load_weights(network, pretrained_weights(name) if pretrained is True else pretrained, new_head=None)
    return network


def trusted(name: Any, origin: str) -> Any:
    """Give a name that a file holds back; raises UsageError for an import path, since that would run what it names."""
    if isinstance(name, str) and "." in name and name not in _REGISTRY and not name.startswith("timm:"):
        raise UsageError(
            f"{origin} names its network {name:.200}, which is not registered: no code is run because a file says so. "
            f"Give network={name[:200]!r} yourself if you trust it"
        )
    return name


def _import(name: str) -> Callable[..., nn.Module]:
    """Find what makes a network by its import path; UsageError, with the registered names, where there is none."""
    path, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        hint = did_you_mean(name, _REGISTRY)
        if path:
            hint += f"as an import path it leads nowhere ({error}; the working folder and PYTHONPATH are searched); "
        known = f"known are {', '.join(list_networks())}, timm:<model> and import paths"
        raise UsageError(f"unknown network {name!r}: {hint}{known}") from error
