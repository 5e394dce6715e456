"""Wide residual networks for 32 x 32 images (Zagoruyko and Komodakis, BMVC 2016)."""

from functools import partial

import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import RESNET_KEYS, StagedBackbone
from hsakd_pl.networks.init import conv_fan_out, linear_zero_bias
from hsakd_pl.networks.layers import conv1x1, conv3x3, named, pooled_linear
from hsakd_pl.networks.registry import register_network


class PreActBlock(nn.Module):
    """Block of bn-relu-conv twice; if the width changes, the shortcut is a 1x1 convolution after the first ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, features: Tensor) -> Tensor:
        activated = self.bn1(features).relu_()
        residual = self.conv2(self.bn2(self.conv1(activated)).relu_())
        return residual.add_(features if self.shortcut is None else self.shortcut(activated))


class WideResNet(StagedBackbone):
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks, and a head that begins with bn-relu."""

    published_keys = (
        (r"^stages\.(\d+)", lambda stage: f"block{stage + 1}.layer"),
        (r"^(branches\.\d+\.stages\.\d+)", r"\1.layer"),
        (r"^branches\.(\d+)\.head\.bn1", lambda branch: f"bn{branch + 1}"),
        (r"\.shortcut\.", ".convShortcut."),
        *RESNET_KEYS,
    )
    backbone_init = (conv_fan_out, linear_zero_bias)
    branch_init = (conv_fan_out, linear_zero_bias)

    def __init__(self, num_classes: int, depth: int, width: int, in_channels: int = 3) -> None:
        self.blocks = (depth - 4) // 6
        channels = (16, 16 * width, 32 * width, 64 * width)
        stem = named(conv1=conv3x3(in_channels, 16))
        super().__init__(stem, channels, (1, 1, 2, 2), num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        out_channels = self.channels[stage]
        later = [PreActBlock(out_channels, out_channels, 1) for _ in range(self.blocks - 1)]
        return nn.Sequential(PreActBlock(in_channels, out_channels, stride), *later)

    def make_head(self, num_outputs: int) -> nn.Module:
        channels = self.channels[-1]
        return pooled_linear(channels, num_outputs, bn1=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))


for depth, width in ((40, 2), (40, 1), (16, 2), (16, 1)):
    register_network(f"wrn_{depth}_{width}")(partial(WideResNet, depth=depth, width=width))
