"""ShuffleNet v1 (groups 3; Zhang et al., CVPR 2018) and v2 (1x; Ma et al., ECCV 2018) for 32 x 32 images."""

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import RESNET_KEYS, StagedBackbone
from hsakd_pl.networks.init import conv_fan_out, linear_zero_bias
from hsakd_pl.networks.layers import conv1x1, conv3x3, named, pooled_linear
from hsakd_pl.networks.registry import register_network

BLOCKS = (4, 8, 4)  # per stage, in both versions


class ShuffleUnit(nn.Module):
    """Unit of version 1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    At stride 2 the average-pooled input is concatenated instead of added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        residual_channels = out_channels - in_channels if stride == 2 else out_channels
        width = residual_channels // 4
        self.groups = 1 if in_channels == 24 else 3  # the 24 channels of the stem are neither split nor shuffled
        self.conv1 = conv1x1(in_channels, width, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, residual_channels, groups=3)
        self.bn3 = nn.BatchNorm2d(residual_channels)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, features: Tensor) -> Tensor:
        residual = torch.channel_shuffle(self.bn1(self.conv1(features)).relu_(), self.groups)
        residual = self.bn2(self.conv2(residual)).relu_()
        residual = self.bn3(self.conv3(residual))
        if self.pool is None:
            return residual.add_(features).relu_()
        return torch.cat([residual, self.pool(features)], 1).relu_()


class ShuffleNetV1(StagedBackbone):
    """ShuffleNet v1 with a 1x1 stem of 24 channels and stages of 240, 480 and 960 channels."""

    published_keys = ((r"^head\.fc", "linear"), *RESNET_KEYS)
    branch_init = (conv_fan_out, linear_zero_bias)

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stem = named(conv1=conv1x1(in_channels, 24), bn1=nn.BatchNorm2d(24), relu=nn.ReLU(inplace=True))
        super().__init__(stem, (24, 240, 480, 960), (1, 2, 2, 2), num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        out_channels = self.channels[stage]
        later = [ShuffleUnit(out_channels, out_channels, 1) for _ in range(BLOCKS[stage - 1] - 1)]
        return nn.Sequential(ShuffleUnit(in_channels, out_channels, stride), *later)

    def make_head(self, num_outputs: int) -> nn.Module:
        return pooled_linear(self.channels[-1], num_outputs)


class SplitUnit(nn.Module):
    """Unit of version 2 with stride 1: 1x1, depthwise 3x3, 1x1 on half of the channels, then a shuffle of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        passed, residual = features.chunk(2, 1)
        residual = self.bn1(self.conv1(residual)).relu_()
        residual = self.bn2(self.conv2(residual))
        residual = self.bn3(self.conv3(residual)).relu_()
        return torch.channel_shuffle(torch.cat([passed, residual], 1), 2)


class DownUnit(nn.Module):
    """First unit of a stage of version 2: two paths, each with a strided depthwise 3x3, concatenated and shuffled."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, stride, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(features)))).relu_()
        right = self.bn3(self.conv3(features)).relu_()
        right = self.bn4(self.conv4(right))
        right = self.bn5(self.conv5(right)).relu_()
        return torch.channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(StagedBackbone):
    """ShuffleNet v2 with a 1x1 stem of 24 channels and stages of 116, 232 and 464 channels.

    Every head begins with a 1x1 conv-bn-relu to 1,024 channels.
    """

    # The published branches number this convolution and norm after the stages of the branch, of which there are two,
    # one and one.
    published_keys = (
        (r"^head\.fc", "linear"),
        (r"^branches\.(\d+)\.head\.conv2", lambda branch: f"block_extractor{branch + 1}.{max(2 - branch, 1)}"),
        (r"^branches\.(\d+)\.head\.bn2", lambda branch: f"block_extractor{branch + 1}.{max(2 - branch, 1) + 1}"),
        *RESNET_KEYS,
    )

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stem = named(conv1=conv1x1(in_channels, 24), bn1=nn.BatchNorm2d(24), relu=nn.ReLU(inplace=True))
        super().__init__(stem, (24, 116, 232, 464), (1, 2, 2, 2), num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        out_channels = self.channels[stage]
        later = [SplitUnit(out_channels) for _ in range(BLOCKS[stage - 1] - 1)]
        return nn.Sequential(DownUnit(in_channels, out_channels, stride), *later)

    def make_head(self, num_outputs: int) -> nn.Module:
        before = {"conv2": conv1x1(self.channels[-1], 1024), "bn2": nn.BatchNorm2d(1024), "relu": nn.ReLU(inplace=True)}
        return pooled_linear(1024, num_outputs, **before)


register_network("shufflenetv1")(ShuffleNetV1)
register_network("shufflenetv2")(ShuffleNetV2)
