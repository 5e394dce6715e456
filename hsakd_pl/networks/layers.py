"""Build layers that several architectures share."""

from collections import OrderedDict

import torch.nn as nn


def named(**modules: nn.Module) -> nn.Sequential:
    """Return a sequence of named modules."""
    return nn.Sequential(OrderedDict(modules))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size of a map at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def pooled_linear(channels: int, num_outputs: int, **before: nn.Module) -> nn.Sequential:
    """Return a head (B, channels, S, S) -> (B, num_outputs): modules ``before``, average pooling, a linear layer."""
    return named(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_outputs))
