"""Compute a norm in one operation with the addition and the ReLU after it, where it is suitable."""

from functools import partial
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from hsakd_pl.fast.norms.functions import MIN_CHANNELS, NormReLU, computed_again
from hsakd_pl.fast.norms.recomputed import set_source

DTYPES = (torch.float32, torch.bfloat16)

# Values of the maps; with fewer, the call costs what it saves
MIN_VALUES = 2**16


def is_suitable(layer: nn.Module) -> bool:
    """Return whether :func:`norm_relu` may compute a layer in one operation, for some maps."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.track_running_stats
        and layer.num_features >= MIN_CHANNELS
        and layer.weight.device.type == "cpu"
        and "forward" not in vars(layer)
    )


def norm_relu(norm: nn.Module, relu: nn.Module | None, features: Tensor, residual: Tensor | None) -> Tensor:
    """Return ``relu(norm(features) + residual)``, in one operation for large channels_last maps on a CPU.

    Args:
        norm: the norm.
        relu: the layer that is the ReLU, or None where it is a function.
        features: maps (B, C, H, W).
        residual: maps of the same shape, or None.
    """
    if not _is_fast(norm, features) or not (residual is None or _are_alike(features, residual)):
        normalized = norm(features)
        summed = normalized if residual is None else normalized + residual
        return torch.relu(summed) if relu is None else relu(summed)
    norm = cast(nn.BatchNorm2d, norm)
    mean, variance, _ = _statistics(norm)
    update = None
    if norm.training:
        mean = torch.empty_like(mean)
        variance = torch.empty_like(variance)
        update = partial(_update, norm, mean, variance, features.numel() // features.shape[1])
    outputs: Tensor = NormReLU.apply(
        features, residual, norm.weight, norm.bias, mean, variance, norm.eps, norm.training, update
    )
    if residual is None:
        set_source(outputs, partial(computed_again, norm.eps), features, norm.weight, norm.bias, mean, variance)
    return outputs


def has_hooks(layer: nn.Module) -> bool:
    """Return whether a function is called before or after a layer, in the forward or the backward pass."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or _has_any_global_hook()


def _is_fast(norm: nn.Module, features: Tensor) -> bool:
    if not is_suitable(norm) or has_hooks(norm):
        return False
    norm = cast(nn.BatchNorm2d, norm)
    running_mean, *_ = _statistics(norm)
    if type(features) is not Tensor or features.dim() != 4 or features.device.type != "cpu":
        return False
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
