"""Convolutional layers that use the operator where it pays, and how a network's come to do so."""

from types import MethodType

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.fast.winograd.library import library
from hsakd_pl.fast.winograd.ops import PANEL, conv3x3, transformed

LEAST_FILTERS = 512  # input times output channels; below, the transforms cost more than is saved
LEAST_WORK = 1e8  # multiplications and additions of the plain convolution; below, calls cost more
LEAST_TILES = 256  # of a batch; below, it does not pay to transform weights that change at every step
MOST_PIXELS = 1.8  # that whole tiles may have, for one of the images

METHOD, FILTERS = "_conv_forward", "_winograd_filters"  # what a converted layer has of its own


def convert(network: nn.Module, frozen: bool = False) -> None:
    """Let the layers of ``network`` that suit Winograd's algorithm use it where it pays, in float32 on a CPU.

    A layer's method is shadowed on the layer: its class, parameters, hooks and name stay. ``frozen``: the weights will
    not change, so they are transformed at once. Where the machine has no use for it, or no C compiler, nothing changes.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _suits(layer) and library() is not None:
            setattr(layer, METHOD, MethodType(_winograd_forward, layer))
            vars(layer)[FILTERS] = transformed(layer.weight.detach()) if frozen else None


def revert(network: nn.Module) -> None:
    """Take back what :func:`convert` has done."""
    for layer in network.modules():
        if vars(layer).pop(FILTERS, layer) is not layer:
            del vars(layer)[METHOD]


def _winograd_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    filters = vars(layer)[FILTERS]
    pays = _pays(images, weight, filters is not None)
    return conv3x3(images, weight, bias, filters) if pays else nn.Conv2d._conv_forward(layer, images, weight, bias)


def _pays(images: Tensor, weight: Tensor, frozen: bool) -> bool:
    if (images.dtype, weight.dtype, images.device.type, images.dim()) != (torch.float32, torch.float32, "cpu", 4):
        return False
    number, _, height, width = images.shape
    tiles = -(-height // 4) * -(-width // 4)
    work = 2 * number * height * width * weight.numel()
    large = work >= LEAST_WORK and (number * tiles >= LEAST_TILES or frozen)
    return large and 16 * tiles <= MOST_PIXELS * height * width and not torch.is_autocast_enabled("cpu")


def _suits(layer: nn.Conv2d) -> bool:
    inputs, outputs = layer.in_channels, layer.out_channels
    return (
        (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (layer.groups, layer.padding_mode) == (1, "zeros")
        and inputs % PANEL == outputs % PANEL == 0
        and inputs * outputs >= LEAST_FILTERS
        and (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)
        and not {METHOD, "forward"} & vars(layer).keys()  # of a user's, or converted already
    )
