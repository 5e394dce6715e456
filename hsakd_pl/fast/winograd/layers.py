"""Let convolutional layers use Winograd's algorithm where it is faster."""

from types import MethodType
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.fast.kernels.library import library
from hsakd_pl.fast.winograd.ops import PANEL, conv3x3, transformed

# Thresholds beyond which PyTorch's convolution is faster
MIN_FILTERS = 512  # input times output channels; the transforms cost more than they save with fewer
MIN_WORK = 1e8  # multiplications and additions of the plain convolution; calls cost more than they save with fewer
MIN_TILES = 256  # tiles of a batch, if weights change at every step and must be transformed again
MAX_PADDED_PIXELS = 1.8  # pixels of whole tiles per pixel of an image

METHOD = "_conv_forward"  # the method of nn.Conv2d that a converted layer overrides
FILTERS = "_winograd_filters"  # attribute of a converted layer: its Filters if frozen, otherwise None


class Filters(NamedTuple):
    """The transformed weights of a layer, valid for these weights in this version."""

    transformed: Tensor
    weight: Tensor
    version: int

    def of(self, weight: Tensor) -> Tensor | None:
        """Return the transformed weights if they are those of ``weight``."""
        is_same = weight is self.weight and (torch.compiler.is_compiling() or version_of(weight) == self.version)
        return self.transformed if is_same else None


def version_of(weight: Tensor) -> int:
    """Return how often a weight has been changed in place; 0 in inference mode, which does not count."""
    return 0 if weight.is_inference() else weight._version


def convert(network: nn.Module, frozen: bool = False) -> None:
    """Let the suitable layers of a network use Winograd's algorithm where it is faster, in float32 on a CPU.

    A method of each layer is overridden on the instance; its class, parameters, hooks and name stay the same. Without
    AVX2 or a C compiler, nothing changes.

    Args:
        network: network whose layers are converted in place.
        frozen: transform the weights once, since they will not change.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_suitable(layer) and library() is not None:
            setattr(layer, METHOD, MethodType(_winograd_forward, layer))
            is_fixed = frozen and "weight" in layer._parameters  # others are computed in each forward pass
            vars(layer)[FILTERS] = _filters(layer.weight) if is_fixed else None


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for layer in network.modules():
        if FILTERS in vars(layer):
            del vars(layer)[FILTERS]
            del vars(layer)[METHOD]


def _filters(weight: Tensor) -> Filters:
    return Filters(transformed(weight.detach()), weight, version_of(weight))


def _winograd_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    frozen: Filters | None = vars(layer)[FILTERS]
    filters = None if frozen is None else frozen.of(weight)
    if _is_faster(images, weight, frozen=filters is not None):
        return conv3x3(images, weight, bias, filters)
    return nn.Conv2d._conv_forward(layer, images, weight, bias)


def _is_faster(images: Tensor, weight: Tensor, frozen: bool) -> bool:
    if images.dim() != 4 or images.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if images.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    number, _, height, width = images.shape
    tiles_per_image = ((height + 3) // 4) * ((width + 3) // 4)
    work = 2 * number * height * width * weight.numel()
    enough_tiles = frozen or number * tiles_per_image >= MIN_TILES
    little_padding = 16 * tiles_per_image <= MAX_PADDED_PIXELS * height * width
    return work >= MIN_WORK and enough_tiles and little_padding


def _is_suitable(layer: nn.Conv2d) -> bool:
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if geometry != ((3, 3), (1, 1), (1, 1), (1, 1)) or layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    if layer.in_channels % PANEL or layer.out_channels % PANEL:
        return False
    overridden = {METHOD, "forward"} & vars(layer).keys()  # by a user, or converted already
    return (
        layer.in_channels * layer.out_channels >= MIN_FILTERS
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and not overridden
    )
