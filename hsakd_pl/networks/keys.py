"""Map the names of weights: published names to the network's state-dict keys, and back."""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice, takewhile

import torch.nn as nn

from hsakd_pl.files.weights import WRAPPERS, StateDict
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network

Peers = nn.ModuleList | list[nn.Module] | tuple[nn.Module, ...]

# The prefix of a peer's weights, in a published pair or in a module's checkpoint.
PEER = re.compile(r"net(?:works\.)?\d+\.")
# The last layer of mobilenetv2, which some code bases wrap in a sequence.
CLASSIFIER = re.compile(r"classifier\.(?:0\.)?(weight|bias)$")
CLASSIFIER_FORMS = (r"classifier.\1", r"classifier.0.\1")
MOST_PREFIXES = 6  # tried on the keys of a file
# Names of the residual networks of pytorchcv, and the published ones
PYTORCHCV = (
    (re.compile(r"^features\.init_block\.(conv|bn)\."), lambda kind: f"{kind}1."),
    (
        re.compile(r"^features\.stage(\d+)\.unit(\d+)\.body\.conv(\d)\.(conv|bn)\."),
        lambda stage, unit, number, kind: f"layer{stage}.{int(unit) - 1}.{kind}{number}.",
    ),
    (
        re.compile(r"^features\.stage(\d+)\.unit(\d+)\.identity_conv\.(conv|bn)\."),
        lambda stage, unit, kind: f"layer{stage}.{int(unit) - 1}.downsample.{int(kind == 'bn')}.",
    ),
    (re.compile(r"^(output)\."), lambda _: "fc."),
)


def published_key(network: nn.Module, key: str) -> str:
    """Return the published name of a state-dict key; networks that were never published keep theirs."""
    rules = network.without_branches.published_keys if isinstance(network, Network) else ()
    if not rules:
        return key
    published_prefixes = {"branches": "auxiliary_classifier.", "backbone": "backbone."}
    published_prefix = published_prefixes.get(key.split(".")[0], "")
    key = key.removeprefix("backbone.")
    for pattern, replacement in rules:
        if isinstance(replacement, str):
            key = re.sub(pattern, replacement, key)
        elif match := re.search(pattern, key):
            numbers = [int(group) for group in match.groups()]
            key = key[: match.start()] + replacement(*numbers) + key[match.end() :]
    return published_prefix + key


def published_state_dict(network: nn.Module | Peers) -> StateDict:
    """Return the network's weights under the published keys, in the published order.

    Peers of mutual distillation (a list or ModuleList of networks) get the prefixes ``net1.``, ``net2.``, ...

    Args:
        network: network, or peers of mutual distillation.

    Returns:
        Weights by published key, such as ``backbone.conv1.weight``.

    Examples:
        >>> network = create_network("wrn_40_2")
        >>> torch.save({"net": published_state_dict(network)}, "wrn_40_2_aux.pth.tar")
    """
    if isinstance(network, nn.Module) and not isinstance(network, nn.ModuleList):
        weights = {published_key(network, key): tensor for key, tensor in network.state_dict().items()}
        return {key: weights[key] for key in sorted(weights, key=_published_order)}
    weights_of_peers: StateDict = {}
    for number, peer in enumerate(network, start=1):
        weights_of_peers |= {f"net{number}.{key}": tensor for key, tensor in published_state_dict(peer).items()}
    return weights_of_peers


def _published_order(key: str) -> str:
    """Return a sort key: the backbone, the stages of all branches, then their heads, layer by layer."""
    if not key.startswith("auxiliary_classifier."):
        return "0"
    head = re.match(r"auxiliary_classifier\.(?!block_extractor)([a-z]+)", key)
    return f"2 {head[1]}" if head else "1"


def network_keys(network: nn.Module, weights: StateDict) -> tuple[StateDict, list[str]]:
    """Return weights under the network's keys, and the keys that more than one of the weights map to.

    A prefix of many keys, and ``student.`` of mdistiller's checkpoints, are removed if the keys fit better without, and
    the weights without the prefix are left out; keys that the network does not have remain.
    """
    key_of_name = _names(network)
    candidates = [
        adapted
        for candidate in _without_prefixes(weights)
        for renamed in (candidate, as_published(candidate))
        for adapted in _adapted_to_part(network, renamed)
    ]

    def fitting(candidate: StateDict) -> tuple[int, int]:
        known = sum(name in key_of_name for name in candidate)
        others = len(candidate) - known if known else 0  # where nothing fits, the weights stay as they are
        return known, -others  # of two that hold as many, the one with fewer others

    renamed = max(candidates, key=fitting)
    counts = Counter(key_of_name.get(name, name) for name in renamed)
    repeated = [key for key, count in counts.items() if count > 1]
    return {key_of_name.get(name, name): tensor for name, tensor in renamed.items()}, repeated


def as_published(weights: StateDict) -> StateDict:
    """Return weights of pytorchcv's residual networks under the published names; others keep theirs."""

    def renamed(key: str) -> str:
        for pattern, name in PYTORCHCV:
            key = pattern.sub(lambda match: name(*match.groups()), key)  # noqa: B023
        return key

    return {renamed(key): tensor for key, tensor in weights.items()}


def _names(network: nn.Module) -> dict[str, str]:
    """Return the network's key of each name that its weights may have in a file, without the prefixes of wrappers."""
    key_of_name = {}
    for form in CLASSIFIER_FORMS:
        for key in network.state_dict():
            name = CLASSIFIER.sub(form, published_key(network, key))
            key_of_name[WRAPPERS.sub("", name)] = key
    return key_of_name | {key: key for key in network.state_dict()}


def _without_prefixes(weights: StateDict) -> Iterator[StateDict]:
    """Yield the weights without each prefix that may be removed: the most frequent ones, the shortest first.

    Those of a student come first, and those of a teacher last.
    """
    counts = _prefixes(weights)

    def order(prefix: str) -> tuple[bool, bool, int, int]:
        return "teacher" in prefix, "student" not in prefix, -counts[prefix], len(prefix)

    prefixes = dict.fromkeys(["", "student.", *sorted(counts, key=order)[:MOST_PREFIXES]])
    if "student." in counts:  # of mdistiller, whose files hold the teacher too
        prefixes.pop("teacher.", None)
    for removed in prefixes:
        yield {key.removeprefix(removed): tensor for key, tensor in weights.items() if key.startswith(removed)}


def _prefixes(weights: StateDict) -> Counter[str]:
    """Return the prefixes of keys, and the number of keys that have each."""
    return Counter(key[: dot.end()] for key in weights for dot in islice(re.finditer(r"\.", key), MOST_PREFIXES))


def second_prefix(network: nn.Module, weights: StateDict, keys: Collection[str]) -> str:
    """Return the prefix under which weights hold all of a network's ``keys``; empty if there is none."""
    key_of_name = _names(network)
    for prefix, count in _prefixes(weights).items():
        names = [key.removeprefix(prefix) for key in weights if key.startswith(prefix)] if count >= len(keys) else []
        if names and {key_of_name.get(name) for name in names}.issuperset(keys):
            return prefix
    return ""


def _adapted_to_part(network: nn.Module, weights: StateDict) -> Iterator[StateDict]:
    """Yield the weights unchanged, and as those of a part: with or without the prefix of a backbone."""
    yield weights
    if isinstance(network, HSAKDNet):
        yield {f"backbone.{key}": tensor for key, tensor in weights.items()}
    else:
        yield {key.removeprefix("backbone."): t for key, t in weights.items() if key.startswith("backbone.")}


def has_keys(network: nn.Module, weights: StateDict) -> bool:
    """Return True if all weights are those of one network, by their keys."""
    renamed, _ = network_keys(network, weights)
    return len(renamed) == len(weights) and renamed.keys() <= network.state_dict().keys()


def split_peers(weights: StateDict) -> list[StateDict]:
    """Split the weights of a pair (``net1.``, ...) or of a module (``networks.0.``, ...) by network.

    The weights of one network are returned as a list of one. Other weights of a module, which only its training needs,
    are left out.
    """
    if any(key.startswith("networks.0.") for key in weights):
        weights = {key: tensor for key, tensor in weights.items() if key.startswith("networks.")}
    start = 0
    if not any(PEER.match(key) for key in weights):
        start = len(common_prefix(weights))
    parts: dict[str, StateDict] = {}
    for key, tensor in weights.items():
        if peer := PEER.match(key, start):
            parts.setdefault(peer[0], {})[key[peer.end() :]] = tensor
        else:
            parts.setdefault("", {})[key] = tensor
    return list(parts.values())


def common_prefix(weights: StateDict) -> str:
    """Return the prefix of all keys, up to and including its last dot."""
    first = min(weights, default="").split(".")[:-1]
    last = max(weights, default="").split(".")[:-1]
    common = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{part}." for part, _ in common)
