"""Convolutional layers that use the operator where it pays, and how a network's come to do so."""

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.winograd.library import library
from hsakd_pl.winograd.ops import PANEL, conv3x3, transformed

LEAST_FILTERS = 512  # input times output channels; below, the transforms cost more than is saved
LEAST_WORK = 1e8  # multiplications and additions of the plain convolution; below, calls cost more
LEAST_TILES = 256  # of a batch; below, it does not pay to transform weights that change at every step
MOST_PIXELS = 1.8  # that whole tiles may have, for one of the images


class WinogradConv2d(nn.Conv2d):
    """A 3x3 ``nn.Conv2d`` that gives the same up to rounding, on a CPU in float32 in half the time or less.

    Elsewhere, and for images too small to gain, it is the plain layer. ``filters``: of a frozen one, transformed.
    """

    filters: Tensor | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._pays(input, weight):
            return conv3x3(input, weight, bias, self.filters)
        return super()._conv_forward(input, weight, bias)

    def _pays(self, images: Tensor, weight: Tensor) -> bool:
        if not images.dtype == weight.dtype == torch.float32 or images.device.type != "cpu" or images.dim() != 4:
            return False
        number, _, height, width = images.shape
        tiles = -(-height // 4) * -(-width // 4)
        return (
            2 * number * height * width * weight.numel() >= LEAST_WORK
            and (number * tiles >= LEAST_TILES or self.filters is not None)
            and 16 * tiles <= MOST_PIXELS * height * width
            and not torch.is_autocast_enabled("cpu")
        )


def set_winograd(network: nn.Module, on: bool, frozen: bool = False) -> None:
    """Let the layers of ``network`` that :class:`WinogradConv2d` suits be such, or plain ones again, in place.

    Parameters, hooks and names stay. ``frozen``: the weights will not change, so they are transformed at once. Where
    the machine has no use for it, or no C compiler, nothing changes.
    """
    for layer in network.modules():
        if on and type(layer) is nn.Conv2d and _suits(layer) and library() is not None:
            layer.__class__ = WinogradConv2d
            assert isinstance(layer, WinogradConv2d)
            layer.filters = transformed(layer.weight.detach()) if frozen else None
        elif not on and type(layer) is WinogradConv2d:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # back to the base class


def _suits(layer: nn.Conv2d) -> bool:
    inputs, outputs = layer.in_channels, layer.out_channels
    return (
        (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (layer.groups, layer.padding_mode) == (1, "zeros")
        and inputs % PANEL == outputs % PANEL == 0
        and inputs * outputs >= LEAST_FILTERS
        and (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)
    )
