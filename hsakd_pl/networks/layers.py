"""Pieces that several architectures share."""

from collections import OrderedDict

import torch.nn as nn


def named(**modules: nn.Module) -> nn.Sequential:
    """A sequence whose parts are reached, and saved, by name."""
    return nn.Sequential(OrderedDict(modules))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias that keeps S x S at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def pooled_linear(channels: int, num_outputs: int, **before: nn.Module) -> nn.Sequential:
    """Head (B, channels, S, S) -> (B, num_outputs): the modules ``before``, the mean over positions, a linear layer."""
    return named(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_outputs))
