"""Let norms be computed in one operation with the addition and the ReLU after them."""

from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.fast.kernels.library import library
from hsakd_pl.fast.norms.functions import MIN_CHANNELS, NormReLU
from hsakd_pl.networks.layers import FUSED, has_hooks

DTYPES = (torch.float32, torch.bfloat16)

# Values of the maps; the call costs more than it saves with fewer, as measured on two cores of an AMD EPYC with AVX2
MIN_VALUES = 2**18


def convert(network: nn.Module) -> None:
    """Let :func:`hsakd_pl.networks.layers.norm_relu` be one operation for the suitable norms of a network, on a CPU.

    An attribute of each norm is set; its class, parameters, hooks and name stay the same. Without AVX2 or a C compiler,
    nothing changes.
    """
    for layer in network.modules():
        if type(layer) is nn.BatchNorm2d and _is_suitable(layer) and library() is not None:
            setattr(layer, FUSED, _fused)


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for layer in network.modules():
        if vars(layer).get(FUSED) is _fused:
            delattr(layer, FUSED)


def _is_suitable(layer: nn.BatchNorm2d) -> bool:
    complete = layer.affine and layer.track_running_stats
    return complete and layer.num_features >= MIN_CHANNELS and "forward" not in vars(layer)


def _fused(norm: nn.BatchNorm2d, features: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return ``relu(norm(features) + residual)``, or None where the operation cannot compute it."""
    if _is_traced() or has_hooks(norm) or not _are_suitable(norm, features):
        return None
    if residual is not None and not _are_alike(features, residual):
        return None
    mean, variance, _ = _statistics(norm)
    if norm.training:
        mean = torch.empty_like(mean)
        variance = torch.empty_like(variance)
    outputs: Tensor = NormReLU.apply(
        features, residual, norm.weight, norm.bias, mean, variance, norm.eps, norm.training
    )
    if norm.training:
        _update(norm, mean, variance, features.numel() // features.shape[1])
    return outputs


def _is_traced() -> bool:
    """Check whether a compiler, a tracer or a function transform has to see the norm itself."""
    if torch.compiler.is_compiling():  # first, as a compiler does not know the functions below
        return True
    return torch._C._get_tracing_state() is not None or torch._C._functorch.peek_interpreter_stack() is not None


def _are_suitable(norm: nn.BatchNorm2d, features: Tensor) -> bool:
    if type(features) is not Tensor or features.dim() != 4 or features.device.type != "cpu":
        return False
    running_mean, *_ = _statistics(norm)
    if features.dtype not in DTYPES or not norm.weight.dtype == running_mean.dtype == torch.float32:
        return False
    number, channels, height, width = features.shape
    if channels != norm.num_features or features.numel() < MIN_VALUES or number * height * width < 2:
        return False  # the last: PyTorch refuses to normalise a single value
    return features.is_contiguous(memory_format=torch.channels_last)


def _are_alike(features: Tensor, residual: Tensor) -> bool:
    same = type(residual) is Tensor and residual.dtype == features.dtype and residual.shape == features.shape
    return same and residual.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as ``nn.BatchNorm2d`` does, given those of a batch of ``count`` values."""
    running_mean, running_variance, batches = _statistics(norm)
    batches.add_(1)
    factor = 1 / float(batches) if norm.momentum is None else norm.momentum
    running_mean.lerp_(mean, factor)
    running_variance.lerp_(variance * (count / (count - 1)), factor)


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Return running mean, running variance and number of batches of a norm that has them."""
    return cast(tuple[Tensor, Tensor, Tensor], (norm.running_mean, norm.running_var, norm.num_batches_tracked))
