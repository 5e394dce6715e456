"""Build networks from the options of a module, and load their weights."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parameter import is_lazy

from hsakd_pl.data.description import Description
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files.weights import WeightFile, read_weight_file, shorten, split_entry, weights_digest
from hsakd_pl.networks import Network, as_network, create_network
from hsakd_pl.networks.timm import pretrained_weights
from hsakd_pl.networks.weights import describe, load_weights
from hsakd_pl.ops import ROTATIONS, Transforms, named_transforms

RANDOM = "random"  # instead of a file: randomly initialised weights
PRETRAINED = "pretrained"  # instead of a file: the weights that timm publishes
Net = str | nn.Module  # a name, or a network


def build_network(
    network: Net,
    num_classes: int,
    branches: bool,
    transforms: str | Transforms | None = None,
    channels: int = 3,
) -> Network:
    """Create a network by name, or return the given one.

    Without ``branches`` a network's branches are left out; with ``branches`` it must have some. Raises UsageError if it
    has none, if a given network has other ``transforms``, and if it does not take images of ``channels`` channels.
    """
    if isinstance(transforms, str):
        transforms = named_transforms(transforms)
    if isinstance(network, str):
        network = create_network(network, num_classes, branches, transforms or ROTATIONS, channels=channels)
    built = as_network(unpacked(network), num_classes, channels)
    remember_data(built, network)
    if transforms not in (None, built.transforms):
        raise UsageError("transforms: a network object already has its own; choose them in create_network")
    if branches and not len(built.branches):
        raise UsageError(f"network: {describe(built)} has no branches: use create_network(name, branches=True)")
    return built if branches else built.without_branches


def unpacked(network: nn.Module) -> nn.Module:
    """Return the network of a module, or of an exported student, which normalises its images itself.

    It remembers the data that it was trained on. Other networks are returned unchanged.
    """
    inner = getattr(network, "network", None)
    if isinstance(network, Network) or not isinstance(inner, Network) or not hasattr(network, "description"):
        return network
    remember_data(inner, network)
    return inner


def remember_data(network: Network, given: nn.Module) -> None:
    """Let a network remember the data that it was trained on, if the module that it was given as describes them."""
    description = getattr(given, "description", None)
    if isinstance(description, Description):
        network.remember(WeightFile(f"the given {type(given).__name__}", description=description.saved()))


def load_initial(
    option: str, source: str | None, networks: Network | list[nn.Module], new_head: bool | None = False
) -> dict[str, WeightFile]:
    """Load the weights that an option names into a network or peers; return what is known of them, by the option.

    A file that does not exist is returned as a ``missing`` one, without an error: a checkpoint may replace it. The
    result holds no weights, and is empty where ``source`` is None or ``random``.

    Args:
        option: name of the option.
        source: path of a weight file, with ``#NAME`` at its end for one of several state dicts in it, ``pretrained``,
            ``random`` or None.
        networks: network to load into, or peers.
        new_head: leave the last layers of the heads as they are initialised; None: if their shapes differ.

    Raises UsageError for files that do not fit, and for ``new_head`` without weights.
    """
    if source is None or source == RANDOM:
        if new_head:
            raise UsageError("new_head has no effect without weights: all heads are new")
        return {}
    if source == PRETRAINED:
        return {option: load_pretrained(networks, new_head)}
    if not split_entry(source)[0].exists():
        reason = f"weight file {source} does not exist: check the path, or train first"
        return {option: WeightFile(source, missing=reason)}
    file = read_weight_file(source)
    load_weights(networks, file, new_head=new_head)
    return {option: replace(file, weights=None)}


def load_pretrained(networks: Network | list[nn.Module], new_head: bool | None) -> WeightFile:
    """Load the weights that timm publishes into a network or peers; ``missing`` where they cannot be fetched."""
    peers = networks if isinstance(networks, list) else [networks]
    try:
        published = [pretrained_weights(str(peer.name), cast(Network, peer).in_channels) for peer in peers]
    except UsageError as error:
        return WeightFile(PRETRAINED, missing=str(error))
    for peer, weights in zip(peers, published, strict=True):
        load_weights(peer, weights, new_head=new_head)
    loaded = {f"{number}.{key}": tensor for number, weights in enumerate(published) for key, tensor in weights.items()}
    return WeightFile(PRETRAINED, digest=weights_digest(loaded))


def require_own_weights(networks: Iterable[nn.Module], what: str) -> None:
    """Raise UsageError, naming the networks by ``what``, if two of them share a weight or the memory of one."""
    seen: set[int] = set()
    for network in networks:
        weights = {_memory_of(tensor): name for name, tensor in _named_weights(network)}
        shared = [name for memory, name in weights.items() if memory in seen]
        if shared:
            raise UsageError(
                f"{what} share {counted(len(shared), 'weight')} ({shorten(shared)}), which would be frozen in one and "
                "trained in the other: pass copy.deepcopy(network) as one of them"
            )
        seen |= weights.keys()


def _named_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's values; without values, of the tensor itself."""
    has_storage = not is_lazy(tensor) and tensor.layout == torch.strided
    return (tensor.data_ptr() if has_storage else 0) or id(tensor)


def require_trained(option: str, network: str | nn.Module, weights: str | None) -> None:
    """Raise UsageError if a network that must be trained is given by name and without weights."""
    if isinstance(network, str) and weights is None:
        timm = f", or {PRETRAINED}" if network.startswith("timm:") else ""
        raise UsageError(f"{option}: {network} would be untrained: name the file of its weights, or {RANDOM}{timm}")
