"""Prove, before a faster implementation is used, that it computes what the layers or the network compute."""

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from hsakd_pl.fast.norms.layers import has_hooks

# Hooks that compute a weight in every forward pass, and do nothing else
WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)

# Largest distance of outputs, relative to their norm, that rounding explains
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
TOLERANCE = 0.1  # in half precision, whose rounding adds up over the layers
TF32_TOLERANCE = 1e-2  # in float32 on a GPU, where convolutions round their inputs to 10 bits


class Observed:
    """The weights and hooks of a network, to find out later whether they have changed."""

    def __init__(self, network: nn.Module) -> None:
        layers = [*network.modules()]
        self.hooks = [hooks for layer in layers for hooks in (layer._forward_hooks, layer._forward_pre_hooks)]
        self.number_of_hooks = sum(map(len, self.hooks))
        self.tensors = [tensors for layer in layers for tensors in (layer._parameters, layer._buffers) if tensors]
        self.parameters = [*network.parameters()]
        self.versioned = [
            tensor for tensor in chain(network.parameters(), network.buffers()) if not tensor.is_inference()
        ]
        self.state = self._state()

    @property
    def has_hooks(self) -> bool:
        """Return True if functions of a user see or change what a layer computes."""
        hooks = (hook for layer_hooks in self.hooks for hook in layer_hooks.values())
        return _has_any_global_hook() or any(not isinstance(hook, WEIGHT_HOOKS) for hook in hooks)

    def is_unchanged(self) -> bool:
        """Return whether all parameters and buffers are the same, with the same values, and no hook was added."""
        has_same_hooks = sum(map(len, self.hooks)) == self.number_of_hooks and not _has_any_global_hook()
        return has_same_hooks and self._state() == self.state

    def _state(self) -> tuple[list[int], list[int], list[int]]:
        """Return which tensors there are, how often each was changed in place, and where the parameters' values are.

        The latter differ after an assignment to ``data``. A few calls of C for each tensor, since every step does this.
        """
        identities = [id(tensor) for tensors in self.tensors for tensor in tensors.values()]
        versions = [tensor._version for tensor in self.versioned]
        return identities, versions, [*map(Tensor.data_ptr, self.parameters)]


class RandomState:
    """The state of the random numbers of the CPU and of a device, to start from it again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state = torch.get_rng_state()
        self.device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def has_changed(self) -> bool:
        """Return whether random numbers of the CPU have been drawn since."""
        return not torch.equal(self.state, torch.get_rng_state())

    def restore(self) -> None:
        torch.set_rng_state(self.state)
        if self.device_state is not None:
            torch.cuda.set_rng_state(self.device_state, self.device)


def are_close(found: Any, expected: Any) -> bool:
    """Return whether two outputs, tensors in any structure, differ by rounding alone."""
    pairs = [*zip(tree_leaves(found), tree_leaves(expected), strict=True)]
    return all(_is_close(*pair) for pair in pairs)


def _is_close(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return found is expected
    if found.shape != expected.shape:
        return False
    dtype = min(found.dtype, expected.dtype, key=lambda dtype: dtype.itemsize)
    tolerance = TOLERANCES.get(dtype, TOLERANCE)
    if dtype == torch.float32 and found.device.type == "cuda":
        tolerance = TF32_TOLERANCE
    distance = (found.double() - expected.double()).norm()
    return bool(distance <= tolerance * expected.double().norm())


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer computes what its class computes, with parameters that nothing else computes."""
    overridden = {"forward", "_conv_forward"} & vars(layer).keys()
    return not (overridden or has_hooks(layer)) and layer._parameters.keys() >= {"weight", "bias"}


@torch.no_grad()
def fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d | None:
    """Return one convolution in place of a convolution and the norm after it, in eval mode; None unless it is equal.

    The children of the norm, as in timm's ``BatchNormAct2d``, are applied to its result. Layers of other classes than
    PyTorch's own are compared on random maps, in float64.
    """
    if not is_plain(convolution) or not is_plain(norm) or norm.running_mean is None:
        return None
    if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
        return fuse_conv_bn_eval(convolution, norm)
    exact_convolution = deepcopy(convolution).cpu().double()
    exact_norm = deepcopy(norm).cpu().double()
    rest = nn.Sequential(*exact_norm.children())
    sides = [
        dilation * (size - 1) + 1 for size, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
    ]
    shape = (2, convolution.in_channels, *sides)
    maps = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = exact_norm(exact_convolution(maps))
    found = rest(fuse_conv_bn_eval(exact_convolution, exact_norm)(maps))
    return fuse_conv_bn_eval(convolution, norm) if are_close(found, expected) else None
