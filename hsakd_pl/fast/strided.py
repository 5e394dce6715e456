"""Keep strided 1x1 convolutions of few channels away from an implementation that writes outside its memory.

oneDNN's gradient of the weights of such a convolution of channels_last maps, in float32 or bfloat16, writes past the
end of its scratch memory where the maps have fewer channels than a block of it
(https://github.com/uxlfoundation/oneDNN/issues/6035, open in PyTorch 2.15). The stems of RepVGG, MobileOne and FastViT
hold such a convolution.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 16  # channels of a block with AVX-512; 8 with AVX2

METHOD = "_conv_forward"  # the method of nn.Conv2d that a converted layer overrides


def conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve like :func:`torch.nn.functional.conv2d`; such a convolution gets only the pixels that it reads."""
    _, channels, *kernel = weight.shape
    if not _is_affected(channels, kernel, stride, padding, groups):
        return F.conv2d(images, weight, bias, stride, padding, dilation, groups)
    down, right = stride
    return F.conv2d(images[..., ::down, ::right], weight, bias)


class Refused(TorchDispatchMode):
    """Raise RuntimeError in place of the gradient of such a convolution, which code besides layers can call too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            _, _, weight, _, stride, padding, _, is_transposed, _, groups, *_ = args
            _, channels, *kernel = weight.shape
            if not is_transposed and _is_affected(channels, kernel, stride, padding, groups):
                raise RuntimeError(f"a strided 1x1 convolution of {channels} channels in channels_last")
        return func(*args, **(kwargs or {}))


def convert(network: nn.Module) -> None:
    """Let the layers of a network that are such convolutions call :func:`conv2d`.

    A method of each layer is overridden on the instance; its class, parameters, hooks and name stay the same.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _is_convertible(layer):
            vars(layer)[METHOD] = MethodType(_strided_forward, layer)


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for layer in network.modules():
        method = vars(layer).get(METHOD)
        if isinstance(method, MethodType) and method.__func__ is _strided_forward:
            del vars(layer)[METHOD]


def _strided_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv2d(images, weight, bias, layer.stride, layer.padding)


def _is_convertible(layer: nn.Conv2d) -> bool:
    is_original = METHOD not in vars(layer) and type(layer)._conv_forward is nn.Conv2d._conv_forward
    return is_original and _is_affected(layer.in_channels, layer.kernel_size, layer.stride, layer.padding, layer.groups)


def _is_affected(
    channels: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str, groups: int
) -> bool:
    is_padded = padding != "valid" and any(padding)
    is_strided = tuple(kernel) == (1, 1) and tuple(stride) != (1, 1) and not is_padded
    return is_strided and groups == 1 and channels < BLOCK
