"""Weight files from elsewhere: unwrap the envelope, map published keys onto ours and back, and never load by halves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Classifier, Network
from hsakd_pl.weight_files import read_weights

# The authors save {'net': ...}, SSKD and Lightning {'state_dict': ...}, CRD and mdistiller {'model': ...}, others these
OTHERS = ("model_state_dict", "state_dict_ema", "model_ema", "params", "weights", "student")
ENVELOPES = ("net", "state_dict", "model", *OTHERS)
COUNTER = "num_batches_tracked"
DEEPEST = 3  # envelopes in each other
# What DataParallel and torch.compile put into keys.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")

StateDict = dict[str, Tensor]
Peers = nn.ModuleList | list[nn.Module] | tuple[nn.Module, ...]


def published_key(network: nn.Module, key: str) -> str:
    """The published name of one of our state-dict keys; unchanged for networks that were never published."""
    backbone = network.backbone if isinstance(network, HSAKDNet) else network
    rules = backbone.published_keys if isinstance(backbone, StagedBackbone) else ()
    if not rules:
        return key
    part = {"branches": "auxiliary_classifier.", "backbone": "backbone."}.get(key.split(".")[0], "")
    key = key.removeprefix("backbone.")
    for pattern, replacement in rules:
        if isinstance(replacement, str):
            key = re.sub(pattern, replacement, key)
        elif match := re.search(pattern, key):
            key = key[: match.start()] + replacement(*map(int, match.groups())) + key[match.end() :]
    return part + key


def published_state_dict(network: nn.Module | Peers) -> StateDict:
    """The network's weights under the published keys, in the published order.

    Peers of mutual distillation (a list or ModuleList of networks) get the prefixes ``net1.``, ``net2.``, ...
    """
    if not isinstance(network, nn.Module) or isinstance(network, nn.ModuleList):
        peers = [published_state_dict(peer) for peer in network]
        return {f"net{number}.{key}": peer[key] for number, peer in enumerate(peers, 1) for key in peer}
    weights = {published_key(network, key): tensor for key, tensor in network.state_dict().items()}
    return {key: weights[key] for key in sorted(weights, key=_published_order)}


def _published_order(key: str) -> str:
    """Sort key: published branches list all their stages first, then their heads' parts, each over all branches."""
    head = re.match(r"auxiliary_classifier\.(?!block_extractor)([a-z]+)", key)
    return f"2 {head[1]}" if head else "1" if key.startswith("auxiliary_classifier.") else "0"


def load_weights(network: nn.Module | Peers, source: str | Path | Mapping[str, Any], strict: bool = True) -> Any:
    """Load published or own weights into ``network`` and return it.

    ``source`` is a path (torch.save or .safetensors) or a state dict, in any envelope, with published keys or ours, as
    float16 or float32. A backbone takes its part of a whole network's weights; a network with branches takes a
    backbone's weights alone and keeps its branches as they are. Peers take ``net1.``, ``net2.``, ... or a
    MutualModule's checkpoint. Unless ``strict``, keys that do not fit are left out.

    Raises UsageError, before anything is changed, listing what is missing, unexpected or of another shape.
    """
    origin = str(source) if isinstance(source, str | Path) else "the given state dict"
    parts = split_peers(unwrap(read_weights(source) if isinstance(source, str | Path) else source, origin))
    single = isinstance(network, nn.Module) and not isinstance(network, nn.ModuleList)
    # mypy cannot follow `single` back to the type of `network`
    peers: list[nn.Module] = [network] if single else list(network)  # type: ignore[list-item, arg-type]
    if len(parts) != len(peers):
        raise UsageError(f"{origin} holds {len(parts)} networks, {len(peers)} were given: pass a list of as many")
    fitting = [fit(peer, weights, strict, origin) for peer, weights in zip(peers, parts, strict=True)]
    for peer, weights in zip(peers, fitting, strict=True):
        peer.load_state_dict(weights, strict=False)
    return network


def fit(network: nn.Module, weights: StateDict, strict: bool, origin: str) -> StateDict:
    """The weights under our keys, without what does not fit.

    Counters of batches may be missing, as for PyTorch. Raises UsageError, if ``strict``, where anything else does not
    fit, and in any case where nothing does, or a weight is NaN or infinite.
    """
    own = network.state_dict()
    weights = _named_as(network, weights, own)
    if odd := [key for key, tensor in weights.items() if not _is_plain(tensor)]:
        raise UsageError(f"{origin}: {_shorten(odd)} are sparse, quantised or without numbers: save dense tensors")
    backbone_alone = isinstance(network, HSAKDNet) and not any(key.startswith("branches.") for key in weights)
    optional = ("branches.",) if backbone_alone else ()
    kin = {key for key in own if key in weights and _is_kin(weights[key], own[key])}
    problems = {
        "missing": [k for k in own if k not in weights and not k.startswith(optional) and not k.endswith(COUNTER)],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            f"{key} ({tuple(weights[key].shape)}, the network has {tuple(own[key].shape)})"
            for key in own
            if key in weights and weights[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} ({weights[key].dtype}, the network has {own[key].dtype})"
            for key in own
            if key in weights and key not in kin
        ],
    }
    found = {key: tensor for key, tensor in weights.items() if key in kin and tensor.shape == own[key].shape}
    if (strict and any(problems.values())) or not found:
        listed = "; ".join(f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise UsageError(
            f"{origin} does not fit {describe(network)}: {listed}. "
            "Name the network, and the num_classes, that it was saved with"
        )
    if spoilt := [key for key, tensor in found.items() if not tensor.isfinite().all()]:
        raise UsageError(f"{origin} holds NaN or infinite numbers in {_shorten(spoilt)}: its training diverged")
    if backbone_alone:
        rank_zero_info(f"{origin} holds a backbone alone: the branches keep their weights")
    if not strict:
        rank_zero_info(f"{origin}: {len(found)} of {len(weights)} tensors were loaded, the rest does not fit")
    return found


def _named_as(network: nn.Module, weights: StateDict, own: StateDict) -> StateDict:
    """The weights under our keys, without a prefix of all keys where they fit without it."""
    names = {published_key(network, key): key for key in own} | {key: key for key in own}
    inner = weights
    while True:
        named = {names.get(key, key): tensor for key, tensor in _fit_part(network, inner).items()}
        prefixes = {key.partition(".")[0] for key in inner if "." in key}
        if own.keys() & named.keys():
            return named
        if len(prefixes) != 1 or not all("." in key for key in inner):
            return {names.get(key, key): tensor for key, tensor in _fit_part(network, weights).items()}
        inner = {key.partition(".")[2]: tensor for key, tensor in inner.items()}


def _is_plain(tensor: Any) -> bool:
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return dense and not tensor.is_quantized and tensor.device.type != "meta"


def _is_kin(tensor: Tensor, own: Tensor) -> bool:
    """Whether it may take the other's place: real numbers for real numbers, integers for integers."""
    kinds = [(t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (tensor, own)]
    return kinds[0] == kinds[1]


def split_peers(weights: StateDict) -> list[StateDict]:
    """Part a pair's weights (``net1.``, ...) or a module's (``networks.0.``, ...) by network; one part otherwise."""
    parts: dict[str, StateDict] = {}
    for key, tensor in weights.items():
        peer = re.match(r"net(?:works\.\d+\.(?:network\.)?|\d+\.)", key)
        parts.setdefault(peer[0] if peer else "", {})[key[peer.end() :] if peer else key] = tensor
    return list(parts.values())


def unwrap(source: Any, origin: str) -> StateDict:
    """Take the state dict out of its envelopes and strip wrappers' prefixes off its keys."""
    for _ in range(DEEPEST):
        inside = source if isinstance(source, Mapping) else {}
        source = next((inside[name] for name in ENVELOPES if isinstance(inside.get(name), Mapping)), source)
    tensors = source if isinstance(source, Mapping) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        found = f", found {_shorten([*map(str, tensors)])}" if tensors else ""
        raise UsageError(f"{origin} holds no state dict: expected one alone or under {', '.join(ENVELOPES)}{found}")
    if not all(isinstance(key, str) for key in tensors):
        raise UsageError(f"{origin} has keys that are no names, such as {next(iter(tensors))!r}: save a state dict")
    return {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}


def describe(network: nn.Module) -> str:
    """Describe a network by class, branches and number of classes, for messages."""
    if not isinstance(network, Network):
        return type(network).__name__
    inner = network.network if isinstance(network, Classifier) else network.without_branches
    branches = " with branches" if network.branches else ""
    return f"{type(inner).__name__}{branches} of {network.num_classes} classes"


def _fit_part(network: nn.Module, weights: StateDict) -> StateDict:
    """Bring a whole network's weights and a backbone's alone to the part that ``network`` is."""
    weights = {re.sub(r"classifier\.0\.(weight|bias)$", r"classifier.\1", key): t for key, t in weights.items()}
    backbone_part = {key.removeprefix("backbone."): t for key, t in weights.items() if key.startswith("backbone.")}
    if isinstance(network, HSAKDNet):
        return weights if backbone_part else {f"backbone.{key}": tensor for key, tensor in weights.items()}
    return backbone_part or weights


def _shorten(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
