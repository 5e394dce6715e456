"""Rebuild weights, inputs and calibration of the recorded runs by rule."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hsakd_pl import create_network, load_weights, published_state_dict

from .inputs import labels, normal
from .recordings import deviation

OUR_NAMES = {
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
    "mobilenetV2": "mobilenetv2",
    "vgg13_bn": "vgg13",
    "ResNet50": "resnet50",
}
PEER_NAMES = {
    "mbv2": "mobilenetv2",
    "shufflev1": "shufflenetv1",
    "shufflev2": "shufflenetv2",
    "resnet18": "resnet18_imagenet",
}


def our_name(published: str) -> tuple[str, bool]:
    """Return our name of a published network, and whether it has branches."""
    plain = published.removesuffix("_aux")
    return OUR_NAMES.get(plain, plain), plain != published


def peer_names(published: str) -> list[str]:
    """Return our names of the two equal peers of a published pair, such as ``mbv2_mbv2``."""
    half = published[: len(published) // 2]
    assert published == f"{half}_{half}", f"not a pair of equal peers: {published}"
    return [PEER_NAMES.get(half, half.lower())] * 2


def build(published: str, num_classes: int, pair: bool = False) -> list[nn.Module]:
    """Return the float64 network of a published name, or the two peers of a pair, on the meta device."""
    names = [(peer, True) for peer in peer_names(published)] if pair else [our_name(published)]
    with torch.device("meta"):
        return [create_network(name, num_classes, branches).double() for name, branches in names]


def fill_array(key: str, shape: Sequence[int]) -> np.ndarray:
    """Return the value of a published state-dict key."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if len(shape) >= 2:
        value = rng.standard_normal(shape)
        value *= math.sqrt(2 / math.prod(shape[1:]))
        return value
    if key.endswith("running_mean"):
        return rng.standard_normal(shape) * 0.1
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    assert len(shape) == 1, f"no rule for {key} {shape}"
    assert key.endswith(("weight", "bias")), f"no rule for {key}"
    return rng.uniform(0.5, 1.5, shape) if key.endswith("weight") else rng.standard_normal(shape) * 0.1


def filled_state(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return filled values under the network's published keys; each is drawn by ``prefix`` + key."""
    shapes = {key: tuple(value.shape) for key, value in published_state_dict(network).items()}
    return {key: torch.from_numpy(fill_array(prefix + key, shape)) for key, shape in shapes.items()}


def materialize(network: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> nn.Module:
    """Move a network from the meta device to the CPU and load ``state`` as a user does."""
    return load_weights(network.to(dtype).to_empty(device="cpu"), dict(state))


def filled_network(published: str, num_classes: int) -> nn.Module:
    """Return a filled float64 network."""
    (network,) = build(published, num_classes)
    return materialize(network, filled_state(network))


def filled_peers(published: str, num_classes: int) -> list[nn.Module]:
    """Return the float64 peers of a pair, filled by their keys ``net1.*`` and ``net2.*``."""
    peers = build(published, num_classes, pair=True)
    return [materialize(peer, filled_state(peer, f"net{number}.")) for number, peer in enumerate(peers, 1)]


def images(seed: int, n: int, size: int = 32) -> Tensor:
    """Return a recorded input, float64 (n, 3, size, size)."""
    return torch.from_numpy(normal(seed, n, 3, size, size))


def targets(seed: int, num_classes: int, n: int) -> Tensor:
    """Return recorded labels, int64 (n,)."""
    return torch.from_numpy(labels(seed, num_classes, n))


def calibrate(network: nn.Module) -> nn.Module:
    """Set running statistics to those of one training-mode batch, so that activations stay small."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = network.training
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images(42, 16).to(next(network.parameters()).dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
    return network.train(training)


def norm_totals(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return sums over the running statistics of a state dict, as recorded."""
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    variances = [value for key, value in state.items() if key.endswith("running_var")]
    return {
        "running_mean_sum": sum(mean.sum().item() for mean in means),
        "running_mean_abs_sum": sum(mean.abs().sum().item() for mean in means),
        "running_var_sum": sum(variance.sum().item() for variance in variances),
        "channels": sum(mean.numel() for mean in means),
    }


def sum_and_l2(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """Return sum and L2 norm over all elements in float64."""
    doubles = [tensor.detach().double().flatten() for tensor in tensors]
    return sum(t.sum().item() for t in doubles), math.sqrt(sum(t.dot(t).item() for t in doubles))


def norm_deviation(computed: Mapping[str, float], recorded: Mapping[str, Any]) -> float:
    """Return the largest relative difference between norm totals; the channel counts must be equal."""
    assert computed["channels"] == recorded["channels"]
    return max(
        deviation(computed["running_mean_sum"], recorded["running_mean_sum"], recorded["running_mean_abs_sum"]),
        deviation(computed["running_mean_abs_sum"], recorded["running_mean_abs_sum"]),
        deviation(computed["running_var_sum"], recorded["running_var_sum"]),
    )
