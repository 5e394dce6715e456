"""VGG with batch normalisation for 32 x 32 images (Simonyan and Zisserman, ICLR 2015)."""

from functools import partial

import torch.nn as nn

from hsakd_pl.networks.backbone import RESNET_KEYS, StagedBackbone
from hsakd_pl.networks.init import conv_fan_out, linear_normal
from hsakd_pl.networks.layers import pooled_linear
from hsakd_pl.networks.registry import register_network

# Convolutions in each of the five blocks, by depth (configurations A, B, D and E of the paper; 8: CRD's vgg8)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def conv_block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """Return 3x3 convolutions with bias and norms, with a ReLU after each pair but the last."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        first = in_channels if index == 0 else out_channels
        layers += [nn.Conv2d(first, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class VGG(StagedBackbone):
    """VGG of five blocks in four stages, of which the last has two; a stage of stride 2 begins with max pooling."""

    # A stage is an optional pool, a block, a ReLU and, in the last stage, another block and ReLU; half the index of an
    # entry is the index of its block. The published branches number three entries per stage.
    published_keys = (
        (r"^head\.fc", "classifier"),
        (r"^stages\.(\d+)\.(\d+)", lambda stage, entry: f"block{stage + entry // 2}"),
        (
            r"^branches\.(\d+)\.stages\.(\d+)\.(\d+)",
            lambda branch, stage, entry: f"block_extractor{branch + 1}.{3 * stage + entry}",
        ),
        *RESNET_KEYS,
    )
    backbone_init = (conv_fan_out, linear_normal)

    def __init__(self, num_classes: int, depth: int, in_channels: int = 3) -> None:
        self.convolutions = CONVOLUTIONS[depth]
        channels = (in_channels, 64, 128, 256, 512)
        super().__init__(nn.Identity(), channels, (1, 1, 2, 2, 2), num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        out_channels = self.channels[stage]
        entries: list[nn.Module] = [nn.MaxPool2d(2)] if stride == 2 else []
        entries += [conv_block(in_channels, out_channels, self.convolutions[stage - 1]), nn.ReLU(inplace=True)]
        if stage == 4:
            entries += [conv_block(out_channels, out_channels, self.convolutions[4]), nn.ReLU(inplace=True)]
        return nn.Sequential(*entries)

    def make_head(self, num_outputs: int) -> nn.Module:
        return pooled_linear(self.channels[-1], num_outputs)


for depth in CONVOLUTIONS:
    register_network(f"vgg{depth}")(partial(VGG, depth=depth))
