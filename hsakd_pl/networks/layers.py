"""Build layers that several architectures share."""

from collections import OrderedDict
from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

FUSED = "fused_norm_relu"  # attribute of a norm: a function that takes the place of norm_relu, or returns None


def norm_relu(norm: nn.Module, features: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return ``relu(norm(features) + residual)`` for maps (B, C, S, S)."""
    fused = getattr(norm, FUSED, None)
    outputs: Tensor | None = fused(norm, features, residual) if fused is not None else None
    if outputs is not None:
        return outputs
    normalized = norm(features)
    if residual is not None:
        normalized.add_(residual)
    return normalized.relu_()


class Layers(nn.Sequential):
    """A sequence in which a norm and the ReLU after it may be one operation."""

    def forward(self, features: Tensor) -> Tensor:
        return apply_layers(self, features)


def apply_layers(layers: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Return the output of layers that are applied one after the other."""
    remaining = _flat(layers)
    while remaining:
        layer = remaining.pop(0)
        if hasattr(layer, FUSED) and remaining and type(remaining[0]) is nn.ReLU and not has_hooks(remaining[0]):
            remaining.pop(0)
            features = norm_relu(layer, features)
        else:
            features = layer(features)
    return features


def _flat(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the layers, with those of the sequences among them."""
    flat: list[nn.Module] = []
    for layer in layers:
        flat += _flat(layer) if type(layer) is Layers and not has_hooks(layer) else [layer]
    return flat


def has_hooks(module: nn.Module) -> bool:
    """Check whether a function is called before or after the module in a forward or backward pass."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or _has_any_global_hook()


def named(**modules: nn.Module) -> Layers:
    """Return a sequence of named modules."""
    return Layers(OrderedDict(modules))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size of a map at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def pooled_linear(channels: int, num_outputs: int, **before: nn.Module) -> nn.Sequential:
    """Return a head (B, channels, S, S) -> (B, num_outputs): modules ``before``, average pooling, a linear layer."""
    return named(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_outputs))
