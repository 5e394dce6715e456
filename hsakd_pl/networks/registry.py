"""Create networks by name."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch.nn as nn

from hsakd_pl.errors import UsageError, did_you_mean, require
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network, as_network, set_channels
from hsakd_pl.networks.timm import make_timm, pretrained_weights
from hsakd_pl.networks.transfer import TRANSFER_NAME, add_transfer
from hsakd_pl.networks.weights import load_weights
from hsakd_pl.ops import ROTATIONS, Transforms

BackboneMaker = Callable[..., StagedBackbone]
CHANNELS_ARGUMENTS = ("in_channels", "in_chans", "channels")  # usual names; the last one may also mean a width
_REGISTRY: dict[str, BackboneMaker] = {}


def register_network(name: str) -> Callable[[BackboneMaker], BackboneMaker]:
    """Register a backbone class, or a function of the number of classes, under a name; a decorator.

    For images of other channels than 3, it is given their number as ``in_channels`` if it has such an argument.

    Args:
        name: name for :func:`create_network` and for configurations.

    Returns:
        Decorator that returns what it decorates.

    Raises:
        UsageError: for a name that is registered already.

    Examples:
        >>> from hsakd_pl.networks.resnet import CIFARResNet
        >>> @register_network("resnet26")
        ... def resnet26(num_classes):
        ...     return CIFARResNet(num_classes, depth=26)
        >>> create_network("resnet26", num_classes=10).num_classes
        10
    """

    def register(make_backbone: BackboneMaker) -> BackboneMaker:
        if name in _REGISTRY:
            raise UsageError(f"register_network: {name!r} is already registered; choose another name")
        _REGISTRY[name] = make_backbone
        return make_backbone

    return register


def list_networks() -> list[str]:
    """Return the registered names, sorted.

    Returns:
        Names for :func:`create_network`.

    Examples:
        >>> [name for name in list_networks() if name.startswith("wrn")]
        ['wrn_16_1', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2']
    """
    return sorted(_REGISTRY)


def create_network(
    name: str,
    num_classes: int = 100,
    branches: bool = True,
    transforms: Transforms = ROTATIONS,
    pretrained: bool | str | Path = False,
    channels: int = 3,
) -> Network:
    """Create a network with fresh weights.

    Source: Yang et al., IJCAI 2021 (the branches).

    Args:
        name: registered name, ``timm:`` followed by the name of a timm model, or the import path of a class or function
            that is called with ``num_classes``, and for other channels than 3 with ``in_channels``, ``in_chans`` or
            ``channels`` if it has such an argument; ``+transfer:CHANNELS:SIDE:FACTOR`` after it replaces the head
            (:func:`hsakd_pl.networks.transfer.add_transfer`).
        num_classes: number of classes N.
        branches: add an auxiliary branch after each stage. The network then returns a :class:`NetworkOutput` for images
            (B, C, S, S), otherwise logits (B, N).
        transforms: transformations whose joint labels the branches learn.
        pretrained: load the weights that timm publishes, or those of a file; heads for other classes stay fresh.
        channels: channels C of the images: 1 for grey ones, 4 for red, green, blue and depth. timm adapts published
            weights to them.

    Returns:
        Network in training mode.

    Raises:
        UsageError: for an unknown name, and for a network that cannot have the branches or the channels that are asked
            for.

    Examples:
        >>> network = create_network("wrn_40_2", num_classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).logits.shape
        torch.Size([2, 100])
    """
    require(type(channels) is int and channels >= 1, "channels", channels, "a whole number, at least 1")
    transfer = TRANSFER_NAME.fullmatch(name)
    if transfer is None:
        network = _create(name, num_classes, branches, transforms, channels)
    elif branches:
        raise UsageError(f"network {name}: a network with a transfer block has no branches; take branches=False")
    else:
        own, width, side, factor = transfer.groups()
        network = _create(own, num_classes, False, transforms, channels)
        network = add_transfer(network, int(width), int(side), int(factor))
    if pretrained:
        weights = pretrained_weights(name, channels) if pretrained is True else pretrained
        load_weights(network, weights, new_head=None)
    return network


def _create(name: str, num_classes: int, branches: bool, transforms: Transforms, channels: int) -> Network:
    """Create the network of a name without additions; arguments: :func:`create_network`."""
    module: nn.Module
    if name.startswith("timm:"):
        module = make_timm(name.removeprefix("timm:"), num_classes, branches, channels)
    elif name in _REGISTRY:
        module = _REGISTRY[name](num_classes, **_channels_argument(_REGISTRY[name], channels))
    else:
        module = _make(name, _import(name), num_classes, channels)
    network = as_network(module, num_classes)
    set_channels(network, channels, name)
    network.name = name
    network.without_branches.name = name
    if isinstance(network, StagedBackbone):
        network.transforms = transforms
        if branches:
            network = HSAKDNet(network, transforms)
    elif branches and not network.branches:
        raise UsageError(
            f"network {name}: branches need a StagedBackbone; derive the network from it, or create it without "
            "branches (branches=False, joint_kd_weight=0)"
        )
    return network if branches else network.without_branches


def _channels_argument(maker: Callable[..., Any], channels: int) -> dict[str, int]:
    """Return the keyword argument that tells a class or function the channels; none for 3, or if it has none."""
    parameters = inspect.signature(maker).parameters if channels != 3 else {}
    names = [name for name in CHANNELS_ARGUMENTS if name in parameters]
    return dict.fromkeys(names[:1], channels)


def _make(name: str, maker: Any, num_classes: int, channels: int) -> nn.Module:
    """Call an imported class or function; raises UsageError if it does not take ``num_classes`` or makes no module."""
    arguments: dict[str, Any] = {"num_classes": num_classes}
    try:
        arguments |= _channels_argument(maker, channels)
        inspect.signature(maker).bind(**arguments)
    except TypeError as error:  # also of something that cannot be called
        raise UsageError(
            f"network {name} cannot be called with num_classes alone ({error}): name a function that can, such as "
            f"def network(num_classes): return {name.rpartition('.')[2]}(n_classes=num_classes)"
        ) from error
    module = maker(**arguments)
    if not isinstance(module, nn.Module):
        raise UsageError(f"network {name} returns {type(module).__name__}: name a class or function of an nn.Module")
    return module


def trusted(name: Any, origin: str) -> Any:
    """Return the name of a network that a file states; raises UsageError for an import path, which would run code."""
    if isinstance(name, str) and "." in name and name not in _REGISTRY and not name.startswith("timm:"):
        raise UsageError(
            f"{origin} names the network {name:.200}, which is not registered, and a file cannot choose code to "
            f"import. If you trust it, pass network={name[:200]!r}"
        )
    return name


def _import(name: str) -> Callable[..., nn.Module]:
    """Import the class or function that creates a network; raises UsageError, listing the registered names."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        hint = did_you_mean(name, _REGISTRY)
        if module:
            hint += f"it cannot be imported ({error}; the working folder and PYTHONPATH are searched); "
        choices = f"choose one of {', '.join(list_networks())}, timm:<model> or an import path"
        raise UsageError(f"unknown network {name!r}: {hint}{choices}") from error
