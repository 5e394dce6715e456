"""Let convolutional layers use Winograd's algorithm where it is faster."""

from types import MethodType

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.fast.kernels.library import library
from hsakd_pl.fast.winograd.ops import PANEL, conv3x3, outputs_last

# Thresholds beyond which PyTorch's convolution is faster
MIN_FILTERS = 512  # input times output channels; the transforms cost more than they save with fewer
MIN_WORK = 1e8  # multiplications and additions of the plain convolution; calls cost more than they save with fewer
MAX_PADDED_PIXELS = 1.8  # pixels of whole tiles per pixel of an image

METHOD = "_conv_forward"  # the method of nn.Conv2d that a converted layer overrides
FROZEN = "_winograd_frozen"  # attribute of a converted layer: its weights will not change


def convert(network: nn.Module, frozen: bool = False) -> None:
    """Let the suitable layers of a network use Winograd's algorithm where it is faster, in float32 on a CPU.

    A method of each layer is overridden on the instance; its class, parameters, hooks and name stay the same. Without
    AVX2 or a C compiler, nothing changes.

    Args:
        network: network whose layers are converted in place.
        frozen: let weights stay in the order that the kernel reads, from its first use on, since they will not change.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_suitable(layer) and library() is not None:
            setattr(layer, METHOD, MethodType(_winograd_forward, layer))
            vars(layer)[FROZEN] = frozen and "weight" in layer._parameters  # others are computed in each forward pass


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for layer in network.modules():
        if FROZEN in vars(layer):
            del vars(layer)[FROZEN]
            del vars(layer)[METHOD]


def _winograd_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _is_faster(images, weight):
        return nn.Conv2d._conv_forward(layer, images, weight, bias)
    if vars(layer)[FROZEN] and weight.stride(0) != 1 and not torch.compiler.is_compiling():
        # in place of the other order, and not in it: another thread may read that one now
        weight = layer.weight = nn.Parameter(outputs_last(weight.detach()), weight.requires_grad)
    return conv3x3(images, weight, bias)


def _is_faster(images: Tensor, weight: Tensor) -> bool:
    if images.dim() != 4 or images.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if images.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    number, _, height, width = images.shape
    tiles_per_image = ((height + 3) // 4) * ((width + 3) // 4)
    work = 2 * number * height * width * weight.numel()
    little_padding = 16 * tiles_per_image <= MAX_PADDED_PIXELS * height * width
    return work >= MIN_WORK and little_padding


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
