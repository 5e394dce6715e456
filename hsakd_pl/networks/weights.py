"""Weight files from elsewhere: unwrap the envelope, map published keys onto ours and back, and never load by halves."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import StateDict, WeightFile, shorten, unwrap
from hsakd_pl.files.weights import file_sha256 as file_sha256
from hsakd_pl.files.weights import read_weights as read_weights
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Classifier, Network

# What parts the peers of a pair or of a module.
PEER = re.compile(r"net(?:works\.\d+\.(?:network\.)?|\d+\.)")
# One layer, which some number in a sequence and others, of the same network, do not.
CLASSIFIER, CLASSIFIERS = re.compile(r"classifier\.(?:0\.)?(weight|bias)$"), (r"classifier.\1", r"classifier.0.\1")
# Within each of these kinds a weight may be cast to the network's dtype.
DTYPES = (
    {torch.float16, torch.bfloat16, torch.float32, torch.float64},
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64},
)

Peers = nn.ModuleList | list[nn.Module] | tuple[nn.Module, ...]


def published_key(network: nn.Module, key: str) -> str:
    """The published name of one of our state-dict keys; unchanged for networks that were never published."""
    rules = network.without_branches.published_keys if isinstance(network, Network) else ()
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


def load_weights(
    network: nn.Module | Peers,
    source: str | Path | WeightFile | Mapping[str, Any],
    strict: bool = True,
    new_head: bool | None = False,
) -> Any:
    """Load published or own weights into ``network`` and return it.

    ``source`` is a path (torch.save or .safetensors), a file already read, or a state dict, in any envelope, with
    published keys or ours, as any floating type. A backbone takes its part of a whole network's weights; a network with
    branches takes a backbone's weights alone and keeps its branches as they are. Peers take ``net1.``, ``net2.``, ...
    or a MutualModule's checkpoint. A prefix of all keys is taken off where they then fit, as is ``student.`` from those
    of mdistiller's checkpoints. Unless ``strict``, keys that do not fit are left out, and counted in the log. With
    ``new_head`` the last layers of the class head and of branches that the file has stay fresh, for other classes;
    None: where their shapes differ.

    Raises UsageError, before anything is changed, listing what is missing, unexpected or of another shape, and where a
    weight is of another kind of number, is not finite, or nothing fits.
    """
    origin = "the given state dict"
    if isinstance(source, WeightFile):
        origin = source.path
        source = source.weights
    elif isinstance(source, str | Path):
        origin = str(source)
        source = read_weights(source)
    parts = split_peers(unwrap(source, origin))
    single = isinstance(network, nn.Module) and not isinstance(network, nn.ModuleList)
    # mypy cannot follow `single` back to the type of `network`
    peers: list[nn.Module] = [network] if single else list(network)  # type: ignore[list-item, arg-type]
    if len(parts) != len(peers):
        raise UsageError(f"{origin} holds {len(parts)} networks, not {len(peers)}: pass as many, or export one (peer)")
    fitting = [fit(peer, weights, strict, origin, new_head) for peer, weights in zip(peers, parts, strict=True)]
    for peer, weights in zip(peers, fitting, strict=True):
        peer.load_state_dict(weights, strict=False)
    if not strict:
        loaded, held = sum(map(len, fitting)), sum(map(len, parts))
        own = sum(len(peer.state_dict()) for peer in peers)
        rank_zero_info(f"{origin}: {loaded} of {held} tensors loaded, {held - loaded} left out; the network has {own}")
    return network


def fit(network: nn.Module, weights: StateDict, strict: bool, origin: str, new_head: bool | None = False) -> StateDict:
    """The weights under our keys, without what does not fit; if ``strict``, UsageError where anything does not.

    The last layers of the heads are left out with ``new_head``, or where that is None and their shapes differ.
    UsageError also for numbers that are not finite or cannot be cast, and where no weight fits.
    """
    own = network.state_dict()
    names = {CLASSIFIER.sub(form, published_key(network, key)): key for form in CLASSIFIERS for key in own}
    names |= {key: key for key in own}
    prefix = _common_prefix(weights)
    starts = ["", "student.", *(prefix[: dot.end()] for dot in re.finditer(r"\.", prefix))][:6]
    held = [{key[len(start) :]: weights[key] for key in weights if key.startswith(start)} for start in starts]
    part = max((_fit_part(network, part) for part in held), key=lambda part: sum(key in names for key in part))
    counts = Counter(names.get(key, key) for key in part)
    weights = {names.get(key, key): tensor for key, tensor in part.items()}
    misfits = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    heads = network.output_layers if isinstance(network, Network) else []
    fresh = {key for key in own if key.rpartition(".")[0] in heads}
    heads_alone = bool(misfits) and fresh.issuperset(misfits)
    if new_head is False or (new_head is None and not heads_alone):
        fresh = set()
    weights = {key: tensor for key, tensor in weights.items() if key not in fresh}
    backbone_alone = isinstance(network, HSAKDNet) and not any(key.startswith("branches.") for key in weights)
    missing = [key for key in own if key not in weights.keys() | fresh and not key.endswith("num_batches_tracked")]
    problems = {
        "missing": [key for key in missing if not (backbone_alone and key.startswith("branches."))],
        "unexpected": [key for key in weights if key not in own],
        "there twice, under other names": [key for key, count in counts.items() if count > 1],
        "of another shape": [
            f"{key} ({tuple(weights[key].shape)}, the network has {tuple(own[key].shape)})"
            for key in misfits
            if key in weights
        ],
    }
    fitting = {key: t for key, t in weights.items() if key in own and t.shape == own[key].shape}
    if (strict and any(problems.values())) or not any(own[key].is_floating_point() for key in fitting):
        listed = "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in problems.items() if keys)
        raise UsageError(
            f"{origin} does not fit {describe(network)}: {listed}. "
            + (f"All its keys begin with {prefix:.80} " * bool(prefix))
            + "Name the network, and the num_classes, that it was saved with"
            + ", or set new_head to train fresh heads in place of its own" * (heads_alone and not new_head)
        )
    for key, tensor in fitting.items():
        dtypes = {tensor.dtype, wanted := own[key].dtype}
        if len(dtypes) > 1 and not any(dtypes <= kind for kind in DTYPES):
            raise UsageError(f"{origin}: {key} is {tensor.dtype}, the network has {wanted}: save it as {wanted}")
        if not tensor.to(wanted).isfinite().all():
            raise UsageError(
                f"{origin}: {key} is NaN or infinite in {wanted}: take weights from before training failed"
            )
    if fresh:
        rank_zero_info(
            f"{origin}: {len(fitting)} tensors loaded; the last layers of the heads ({len(fresh)} tensors) stay fresh, "
            f"for {network.num_classes} classes"
        )
    if backbone_alone:
        rank_zero_info(f"{origin} holds a backbone alone: the branches keep their weights")
    return fitting


def split_peers(weights: StateDict) -> list[StateDict]:
    """Part a pair's weights (``net1.``, ...) or a module's (``networks.0.``, ...) by network; one part otherwise.

    What a module has beside its networks, which training alone needs, is left out.
    """
    parts: dict[str, StateDict] = {}
    if any(key.startswith("networks.0.") for key in weights):
        weights = {key: tensor for key, tensor in weights.items() if key.startswith("networks.")}
    start = 0 if any(map(PEER.match, weights)) else len(_common_prefix(weights))
    for key, tensor in weights.items():
        peer = PEER.match(key, start)
        parts.setdefault(peer[0] if peer else "", {})[key[peer.end() :] if peer else key] = tensor
    return list(parts.values())


def describe(network: nn.Module) -> str:
    """Describe a network by class, branches and number of classes, for messages."""
    if not isinstance(network, Network):
        return type(network).__name__
    inner = network.network if isinstance(network, Classifier) else network.without_branches
    branches = " with branches" if network.branches else ""
    return f"{type(inner).__name__}{branches} of {network.num_classes} classes"


def _fit_part(network: nn.Module, weights: StateDict) -> StateDict:
    """Bring a whole network's weights and a backbone's alone to the part that ``network`` is."""
    backbone_part = {key.removeprefix("backbone."): t for key, t in weights.items() if key.startswith("backbone.")}
    if isinstance(network, HSAKDNet):
        return weights if backbone_part else {f"backbone.{key}": tensor for key, tensor in weights.items()}
    return backbone_part or weights


def _common_prefix(keys: StateDict) -> str:
    """What all keys begin with, up to its last dot."""
    first, last = (key.split(".")[:-1] for key in (min(keys, default=""), max(keys, default="")))
    return "".join(f"{one}." for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
