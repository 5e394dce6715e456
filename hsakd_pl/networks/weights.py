"""Load weights from files and state dicts of any origin into networks, completely or not at all."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, counted, inform
from hsakd_pl.files.weights import ENTRY, StateDict, WeightFile, as_weight_file, read_weights, shorten, unwrap
from hsakd_pl.networks.heads import is_part
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.keys import Peers, common_prefix, has_keys, network_keys, second_prefix, split_peers
from hsakd_pl.networks.network import Classifier, Network

# A weight may be cast to the network's dtype within each of these kinds.
DTYPE_KINDS = (
    {torch.float16, torch.bfloat16, torch.float32, torch.float64},
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64},
)

HALF_PRECISION = (torch.float16, torch.bfloat16)
COUNTER = "num_batches_tracked"  # ending of the names of batch norms' counters


def load_weights(
    network: nn.Module | Peers,
    source: str | Path | WeightFile | Mapping[str, Any],
    strict: bool = True,
    new_head: bool | None = False,
) -> Any:
    """Load weights with published keys or with the network's own into a network.

    A backbone takes its part of a whole network's weights; a network with branches also takes the weights of a backbone
    and keeps its branches. Peers take ``net1.``, ``net2.``, ... or the checkpoint of a MutualModule.

    Args:
        network: a network, or a list of peers.
        source: path of a file that torch.save or safetensors wrote, the file already read, or a state dict; in any
            known envelope. Where a file holds several, such as averages, ``last.pth#ema`` takes those under ``ema``.
        strict: require that all weights fit; otherwise weights that do not fit are skipped, and counted in the log.
        new_head: keep the last layers of the class head and of the branches, for other classes than the source's;
            None: if their shapes differ from the source's.

    Returns:
        The network, or the list of peers.

    Raises:
        UsageError: before anything is changed, if weights are missing, unexpected, of another shape or kind of number,
            or not finite; unless ``strict`` only if no weight fits.

    Examples:
        >>> network = create_network("resnet8", num_classes=10)
        >>> torch.save({"net": published_state_dict(network)}, "resnet8.pth.tar")
        >>> student = load_weights(create_network("resnet8", num_classes=10), "resnet8.pth.tar")
    """
    if isinstance(source, str | Path):
        file = as_weight_file(read_weights(source), str(source))
    elif isinstance(source, WeightFile):
        file = source
    else:
        file = as_weight_file(source, "the given state dict")
    origin = file.path
    weights = unwrap(file.weights, origin)
    peers = _as_peers(network)
    parts = [weights] if len(peers) == 1 and has_keys(peers[0], weights) else split_peers(weights)
    if len(parts) != len(peers):
        raise UsageError(f"{origin} holds {len(parts)} networks, not {len(peers)}: pass as many, or export one (peer)")
    matching = [
        match_weights(peer, weights, strict, origin, new_head) for peer, weights in zip(peers, parts, strict=True)
    ]
    for peer, weights in zip(peers, matching, strict=True):
        peer.load_state_dict(_as_current(weights, peer), strict=False)
        if isinstance(peer, Network):
            peer.remember(file, bool(new_head))
    if not strict:
        loaded = sum(len(weights) for weights in matching)
        total = sum(len(weights) for weights in parts)
        wanted = sum(len(peer.state_dict()) for peer in peers)
        inform(
            f"{origin}: {loaded} of {counted(total, 'tensor')} loaded, {total - loaded} left out; the network has "
            f"{wanted}"
        )
    return network


def _as_current(weights: StateDict, network: nn.Module) -> StateDict:
    """Return weights of the names and shapes of a network as of the current versions of its layers.

    A layer takes a state dict without versions for one of its first version, and converts it.
    """
    current = OrderedDict(weights)
    vars(current)["_metadata"] = vars(network.state_dict()).get("_metadata", {})
    return current


def _as_peers(network: nn.Module | Peers) -> list[nn.Module]:
    """Return the networks of a pair, or one network as a list of one."""
    if isinstance(network, nn.Module) and not isinstance(network, nn.ModuleList):
        return [network]
    return list(network)


def match_weights(
    network: nn.Module, weights: StateDict, strict: bool, origin: str, new_head: bool | None = False
) -> StateDict:
    """Return the weights that fit a network, under the network's keys.

    Raises UsageError if no weight fits, if weights are not finite or of another kind of number and, if ``strict``, if
    weights are missing, unexpected or of another shape. Arguments: :func:`load_weights`.
    """
    network_weights = tensors_of(network.state_dict())
    weights = tensors_of(weights)
    in_file, repeated = network_keys(network, weights)
    renamed = _without_counts(in_file, network_weights)
    misshapen = [key for key in network_weights if key in renamed and renamed[key].shape != network_weights[key].shape]
    head_keys = _head_keys(network) if new_head or misshapen else set()
    only_heads_differ = bool(misshapen) and head_keys.issuperset(misshapen)
    keeps_heads = only_heads_differ if new_head is None else new_head
    fresh = head_keys if keeps_heads else set()
    candidates = {key: tensor for key, tensor in renamed.items() if key not in fresh}
    backbone_alone = isinstance(network, HSAKDNet) and not any(key.startswith("branches.") for key in candidates)

    problems = {
        "missing": _missing(network_weights, candidates.keys() | fresh, backbone_alone),
        "unexpected": [key for key in candidates if key not in network_weights],
        "there twice, under other names": repeated,
        "of another shape": [
            f"{key} ({tuple(candidates[key].shape)}, the network has {tuple(network_weights[key].shape)})"
            for key in misshapen
            if key in candidates
        ],
    }
    matching = {
        key: tensor
        for key, tensor in candidates.items()
        if key in network_weights and tensor.shape == network_weights[key].shape
    }
    has_floats = any(network_weights[key].is_floating_point() for key in matching)
    if not has_floats or (strict and any(problems.values())):
        remedy = "Name the network, and the num_classes, that it was saved with"
        if only_heads_differ and not new_head:
            remedy += ", or set new_head to train fresh heads in place of its own"
        if not problems["missing"] and not problems["unexpected"]:
            _check_channels(network, candidates, misshapen, origin)
        raise _misfit(network, origin, problems, common_prefix(weights), remedy)
    _check_numbers(matching, network_weights, origin)
    _log_others(network, weights, {key: in_file[key] for key in renamed}, origin)
    if fresh:
        inform(
            f"{origin}: {counted(len(matching), 'tensor')} loaded; the last layers of the heads "
            f"({counted(len(fresh), 'tensor')}) stay fresh, for {network.num_classes} classes"
        )
    if backbone_alone:
        inform(f"{origin} holds a backbone alone: the branches keep their weights")
    return matching


def tensors_of(state_dict: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a state dict, which holds the extra state of layers of users too."""
    return {key: entry for key, entry in state_dict.items() if isinstance(entry, Tensor)}


def _without_counts(weights: StateDict, network_weights: StateDict) -> StateDict:
    """Return weights without integers and flags that a network does not have, such as the length of an average.

    Counters of batch norms in half precision, as of a state dict that was cast as a whole, are integers again; those
    that it could not hold are left out.
    """
    kept = {}
    for key, tensor in weights.items():
        is_counter = key.endswith(COUNTER)
        if is_counter and tensor.dtype in HALF_PRECISION and key in network_weights:
            if tensor.isfinite().all():
                kept[key] = tensor.to(network_weights[key].dtype)
        elif is_counter or key in network_weights or tensor.is_floating_point() or tensor.is_complex():
            kept[key] = tensor
    return kept


def _log_others(network: nn.Module, weights: StateDict, taken: StateDict, origin: str) -> None:
    """Log the weights that a network does not take since they are not under the prefix of those that it takes."""
    tensors = {id(tensor) for tensor in taken.values()}
    others = [key for key, tensor in weights.items() if id(tensor) not in tensors]
    parts = {key.split(".")[0] for key in others}
    if others and not parts <= {"branches", "auxiliary_classifier"}:
        message = (
            f"{origin} holds {counted(len(others), 'tensor')} next to the weights of {describe(network)}, which are "
            f"left out: {shorten(others)}"
        )
        second = second_prefix(network, {key: weights[key] for key in others}, taken)
        if second:
            message += f"; name the file with {ENTRY}{second.removesuffix('.')} at its end for those under {second}"
        inform(message)


def _head_keys(network: nn.Module) -> set[str]:
    """Return the keys of the last layers of all heads."""
    if not isinstance(network, Network):
        return set()
    layers = [path for head in network.output_layers for path in head]
    return {key for key in network.state_dict() if is_part(key, layers)}


def _missing(network_weights: StateDict, present: Collection[str], backbone_alone: bool) -> list[str]:
    """Return the keys that a source lacks; counters of batch norms, and branches for a backbone, need not be there."""
    missing = [key for key in network_weights if key not in present and not key.endswith(COUNTER)]
    if backbone_alone:
        missing = [key for key in missing if not key.startswith("branches.")]
    return missing


def _check_channels(network: nn.Module, weights: StateDict, misshapen: Collection[str], origin: str) -> None:
    """Raise UsageError if all that is of another shape is a first layer, for images of other channels.

    Args:
        network: the network.
        weights: the weights under the network's keys.
        misshapen: keys of the weights of other shapes than the network's.
        origin: file of the weights.
    """
    first_layers = [key for key in misshapen if key in weights and weights[key].dim() == 4]
    if not isinstance(network, Network) or len(first_layers) != 1 or len(misshapen) > 1:
        return
    [key] = first_layers
    channels = weights[key].shape[1]
    expected = network.state_dict()[key]
    if (
        expected.dim() == 4
        and expected.shape[1] == network.in_channels
        and weights[key][:, :1].shape == expected[:, :1].shape
    ):
        raise UsageError(
            f"{origin} is of a network for images of {counted(channels, 'channel')}, {describe(network)} takes "
            f"{network.in_channels} ({key}): set channels to {channels} for the data and all networks, or leave these "
            "weights out (timm adapts those that it publishes to the channels of timm:NAME, by weights: pretrained)"
        )


def _misfit(network: nn.Module, origin: str, problems: dict[str, list[str]], prefix: str, remedy: str) -> UsageError:
    """Return the error that lists what does not fit, and ends with a remedy."""
    listed = "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in problems.items() if keys)
    message = f"{origin} does not fit {describe(network)}: {listed}. "
    if prefix:
        message += f"All its keys begin with {prefix:.80} "
    return UsageError(message + remedy)


def _check_numbers(matching: StateDict, network_weights: StateDict, origin: str) -> None:
    """Raise UsageError for a weight that cannot be cast to the network's dtype, or is not finite in it."""
    for key, tensor in matching.items():
        network_dtype = network_weights[key].dtype
        dtypes = {tensor.dtype, network_dtype}
        if len(dtypes) > 1 and not any(dtypes <= kind for kind in DTYPE_KINDS):
            raise UsageError(
                f"{origin}: {key} is {tensor.dtype}, the network has {network_dtype}: save it as {network_dtype}"
            )
        became_infinite = ~tensor.to(network_dtype).isfinite() & network_weights[key].isfinite()  # unlike a mask
        if became_infinite.any():
            raise UsageError(
                f"{origin}: {key} is NaN or infinite in {network_dtype}: take weights from before training failed"
            )


def describe(network: nn.Module) -> str:
    """Describe a network by class, branches and number of classes, for messages."""
    if not isinstance(network, Network):
        return type(network).__name__
    inner = network.network if isinstance(network, Classifier) else network.without_branches
    branches = " with branches" if network.branches else ""
    return f"{type(inner).__name__}{branches} of {counted(network.num_classes, 'class')}"
