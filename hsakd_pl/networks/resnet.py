"""Residual networks: CIFAR resnets, resnet50 for 32 x 32 images and the ImageNet resnets (He et al., CVPR 2016)."""

from functools import partial

import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import RESNET_KEYS, Initializers, StagedBackbone
from hsakd_pl.networks.init import conv_fan_out, linear_zero_bias
from hsakd_pl.networks.layers import conv1x1, conv3x3, named, pooled_linear
from hsakd_pl.networks.registry import register_network


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return a projection if the shape changes, else None for the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.bn1(self.conv1(features)).relu_()))
        return residual.add_(features if self.downsample is None else self.downsample(features)).relu_()


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 (with the stride) and 1x1 convolutions, a quarter as wide inside as its output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.bn1(self.conv1(features)).relu_()
        residual = self.bn2(self.conv2(residual)).relu_()
        residual = self.bn3(self.conv3(residual))
        return residual.add_(features if self.downsample is None else self.downsample(features)).relu_()


class ResNet(StagedBackbone):
    """Residual network with ``blocks[stage - 1]`` blocks in each stage; subclasses differ in stem and channels."""

    published_keys = RESNET_KEYS
    backbone_init: Initializers = (conv_fan_out,)
    branch_init: Initializers = (conv_fan_out,)

    def __init__(
        self,
        num_classes: int,
        stem: nn.Module,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        blocks: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        in_channels: int = 3,
    ) -> None:
        self.blocks = blocks
        self.block = block
        super().__init__(stem, channels, strides, num_classes, in_channels=in_channels)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        out_channels = self.channels[stage]
        later = [self.block(out_channels, out_channels, 1) for _ in range(self.blocks[stage - 1] - 1)]
        return nn.Sequential(self.block(in_channels, out_channels, stride), *later)

    def make_head(self, num_outputs: int) -> nn.Module:
        return pooled_linear(self.channels[-1], num_outputs)


class CIFARResNet(ResNet):
    """resnet{depth} for 32 x 32 images, with (depth - 2) / 6 blocks per stage; by default of 16-16-32-64 channels."""

    branch_init = (conv_fan_out, linear_zero_bias)

    def __init__(
        self,
        num_classes: int,
        depth: int,
        channels: tuple[int, int, int, int] = (16, 16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        first = channels[0]
        stem = named(conv1=conv3x3(in_channels, first), bn1=nn.BatchNorm2d(first), relu=nn.ReLU(inplace=True))
        blocks = ((depth - 2) // 6,) * 3
        super().__init__(num_classes, stem, channels, (1, 1, 2, 2), blocks, in_channels=in_channels)


class CIFARResNet50(ResNet):
    """resnet50 with a 3x3 stem of stride 1 and no pooling, for 32 x 32 images."""

    published_keys = ((r"^head\.fc", "linear"), (r"\.downsample\.", ".shortcut."), *RESNET_KEYS)

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stem = named(conv1=conv3x3(in_channels, 64), bn1=nn.BatchNorm2d(64), relu=nn.ReLU(inplace=True))
        channels = (64, 256, 512, 1024, 2048)
        super().__init__(num_classes, stem, channels, (1, 1, 2, 2, 2), (3, 4, 6, 3), Bottleneck, in_channels)


class ImageNetResNet(ResNet):
    """ResNet for 224 x 224 images, with the shapes and weight names of torchvision."""

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        in_channels: int = 3,
    ) -> None:
        stem = named(
            conv1=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (64, 128, 256, 512) if block is BasicBlock else (256, 512, 1024, 2048)
        super().__init__(num_classes, stem, (64, *widths), (4, 1, 2, 2, 2), blocks, block, in_channels)


for depth in (8, 14, 20, 32, 44, 56, 110):
    register_network(f"resnet{depth}")(partial(CIFARResNet, depth=depth))
for depth in (8, 32):
    register_network(f"resnet{depth}x4")(partial(CIFARResNet, depth=depth, channels=(32, 64, 128, 256)))
register_network("resnet50")(CIFARResNet50)
register_network("resnet18_imagenet")(partial(ImageNetResNet, blocks=(2, 2, 2, 2)))
register_network("resnet34_imagenet")(partial(ImageNetResNet, blocks=(3, 4, 6, 3)))
register_network("resnet50_imagenet")(partial(ImageNetResNet, blocks=(3, 4, 6, 3), block=Bottleneck))
