"""MobileNetV2 of width 0.5 for 32 x 32 images, first convolution with stride 1 or 2 (Sandler et al., CVPR 2018)."""

import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import RESNET_KEYS, StagedBackbone
from hsakd_pl.networks.init import conv_fan_out, linear_normal
from hsakd_pl.networks.layers import conv1x1, conv3x3, named, pooled_linear
from hsakd_pl.networks.registry import register_network

# Rows of each stage: expansion, output channels at width 0.5, blocks. Expansion 6: Table 2 of MobileNetV2.
ROWS = (((1, 8, 1), (6, 12, 2)), ((6, 16, 3),), ((6, 32, 4), (6, 48, 3)), ((6, 80, 3), (6, 160, 1)))
FIRST_ROW = (0, 2, 3, 5, 7)  # index of each stage's first row in the whole network, and the number of all rows


def conv_bn_relu(convolution: nn.Conv2d) -> nn.Sequential:
    """Return the convolution, a norm and a ReLU (the published code has no ReLU6)."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with an identity shortcut if the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.identity = stride == 1 and in_channels == out_channels
        width = in_channels * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(conv1x1(in_channels, width)),
            *conv_bn_relu(conv3x3(width, width, stride, groups=width)),
            conv1x1(width, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features).add_(features) if self.identity else self.conv(features)


class MobileNetV2(StagedBackbone):
    """MobileNetV2: seven rows of inverted residuals in four stages.

    Every head begins with a 1x1 conv-bn-relu to 1,280 channels.
    """

    published_keys = (
        (r"^head\.fc", "classifier"),
        (r"^stages\.(\d+)\.(\d+)", lambda stage, row: f"blocks.{FIRST_ROW[stage] + row}"),
        (
            # branch l starts with stage l + 1; its rows are counted from the first row of that stage
            r"^branches\.(\d+)\.stages\.(\d+)\.(\d+)",
            lambda branch, stage, row: (
                f"block_extractor{branch + 1}.{FIRST_ROW[branch + 1 + stage] - FIRST_ROW[branch + 1] + row}"
            ),
        ),
        (r"^branches\.(\d+)\.head\.conv2", lambda branch: f"conv2_{branch + 1}"),
        *RESNET_KEYS,
    )
    backbone_init = (conv_fan_out, linear_normal)
    branch_init = (conv_fan_out, linear_normal)
    stem_stride = 1

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stem = named(conv1=conv_bn_relu(conv3x3(in_channels, 16, self.stem_stride)))
        strides = (self.stem_stride, 1, 2, 2, 2)
        super().__init__(stem, (16, 12, 16, 48, 160), strides, num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        rows = []
        for expansion, out_channels, blocks in ROWS[stage - 1]:
            later = [InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(blocks - 1)]
            rows.append(nn.Sequential(InvertedResidual(in_channels, out_channels, stride, expansion), *later))
            in_channels = out_channels
            stride = 1
        return nn.Sequential(*rows)

    def make_head(self, num_outputs: int) -> nn.Module:
        return pooled_linear(1280, num_outputs, conv2=conv_bn_relu(conv1x1(self.channels[-1], 1280)))


class MobileNetV2Stride2(MobileNetV2):
    """MobileNetV2 of CRD's tables and those that follow them; alone 64.60 % on CIFAR-100 (73.51 with stride 1)."""

    published_keys = ((r"^head\.fc", "classifier.0"), *MobileNetV2.published_keys[1:])
    stem_stride = 2


register_network("mobilenetv2")(MobileNetV2)
register_network("mobilenetv2_stride2")(MobileNetV2Stride2)
