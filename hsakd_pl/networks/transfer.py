"""Put a transfer block and the linear head of another network in place of a network's head, for good.

Such a network is called ``NAME+transfer:CHANNELS:SIDE:FACTOR``, from which :func:`hsakd_pl.create_network` builds it:
checkpoints and exports hold that name, so that everything that loads a network knows these parts.
"""

import re

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.networks.backbone import StagedBackbone, averaging_layer
from hsakd_pl.networks.layers import conv1x1, conv3x3, named, pooled_linear
from hsakd_pl.networks.network import Network

TRANSFER_NAME = re.compile(r"(.+)\+transfer:(\d{1,4}):(\d{1,4}):(\d{1,4})")


def transfer_block(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """Return a bottleneck (B, in_channels, H, W) -> (B, out_channels, H, W), each convolution with norm and ReLU.

    A 1x1, a 3x3 and a 1x1 convolution (Chen et al., CVPR 2022), the former two with ``out_channels`` / ``factor``
    channels.
    """
    valid = factor >= 1 and out_channels % max(factor, 1) == 0
    require(valid, "factor", factor, f"a divisor of the teacher's {out_channels} channels")
    channels = out_channels // factor
    layers: list[nn.Module] = []
    for convolution in (conv1x1(in_channels, channels), conv3x3(channels, channels), conv1x1(channels, out_channels)):
        layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def shrunk(feature_map: Tensor, height: int, width: int) -> Tensor:
    """Return a map (B, C, H, W), average-pooled to a size if it is larger."""
    if feature_map.shape[2] > height or feature_map.shape[3] > width:
        return F.adaptive_avg_pool2d(feature_map, (height, width))
    return feature_map


class Shrink(nn.Module):
    """Average-pool maps (B, C, H, W) to (B, C, side, side) if they are larger."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, feature_map: Tensor) -> Tensor:
        return shrunk(feature_map, self.side, self.side)


def add_transfer(network: Network, channels: int, side: int, factor: int) -> StagedBackbone:
    """Replace the head of a network in place, and return the network.

    A last stage is added: the head's layers before its pooling, an average pooling of larger maps to ``side``, and
    :func:`transfer_block`. The new head averages that stage's map (B, channels, H, W) and classifies it by a fresh
    linear layer. Raises UsageError for a network without stages, and for one that has a transfer block already.

    Args:
        network: a network without branches.
        channels: width of the new head's embedding.
        side: height and width of the largest map that the transfer block is given.
        factor: the block's channels are ``channels`` / ``factor``.
    """
    has_transfer = network.name is not None and TRANSFER_NAME.fullmatch(network.name) is not None
    if has_transfer or not isinstance(network, StagedBackbone) or network.pool_position < 0:
        raise UsageError(
            f"network: {network.name or type(network).__name__} takes no transfer block, which needs stages, and a "
            "head of its own that averages their last map: choose another network"
        )
    require(channels >= 1, "channels", channels, "at least 1")
    require(side >= 1, "side", side, "at least 1")
    before = dict([*network.head.named_children()][: network.pool_position])
    transfer = transfer_block(network.linear_head.in_features, channels, factor)
    network.stages.append(named(**before, shrink=Shrink(side), transfer=transfer))
    network.head = pooled_linear(channels, network.num_classes)
    network.pool_position = averaging_layer(network.head)
    network.channels = (*network.channels, channels)
    network.strides = (*network.strides, 1)
    if network.name is not None:
        network.name = f"{network.name}+transfer:{channels}:{side}:{factor}"
    return network
