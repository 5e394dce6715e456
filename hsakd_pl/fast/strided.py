"""Keep strided 1x1 convolutions of few channels away from an implementation that writes outside its memory.

oneDNN's gradient of the weights of such a convolution of channels_last maps, in float32 or bfloat16, writes past the
end of its scratch memory where the maps have fewer channels than a block of it
(https://github.com/uxlfoundation/oneDNN/issues/6035, open in PyTorch 2.15). The stems of RepVGG, MobileOne and FastViT
hold such a convolution.
"""

from types import MethodType

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16  # channels of a block with AVX-512; 8 with AVX2

METHOD = "_conv_forward"  # the method of nn.Conv2d that a converted layer overrides
CONVERTED = "_strided_by_slicing"  # attribute of a converted layer


def convert(network: nn.Module) -> None:
    """Let those layers of a network convolve only the pixels that they read, with a stride of 1: the same outputs.

    A method of each layer is overridden on the instance; its class, parameters, hooks and name stay the same.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _is_affected(layer):
            vars(layer)[METHOD] = MethodType(_sliced_forward, layer)
            vars(layer)[CONVERTED] = True


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for layer in network.modules():
        if CONVERTED in vars(layer):
            del vars(layer)[CONVERTED]
            del vars(layer)[METHOD]


def _sliced_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    down, right = layer.stride
    return F.conv2d(images[..., ::down, ::right], weight, bias)


def _is_affected(layer: nn.Conv2d) -> bool:
    is_strided = layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding in ((0, 0), "valid")
    is_original = METHOD not in vars(layer) and type(layer)._conv_forward is nn.Conv2d._conv_forward
    return is_strided and is_original and layer.groups == 1 and layer.in_channels < BLOCK
