"""Initial weights of the published code; the functions are passed to ``nn.Module.apply``."""

import math

import torch.nn as nn


def conv_fan_out(module: nn.Module) -> None:
    """Initialize a convolution from a normal distribution of variance 2 / (k * k * out_channels), and its bias to 0.

    Groups are not divided out, so depthwise convolutions start with small weights.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def linear_zero_bias(module: nn.Module) -> None:
    """Set the bias of a linear layer to 0."""
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def linear_normal(module: nn.Module) -> None:
    """Initialize a linear layer from a normal distribution of standard deviation 0.01, and its bias to 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
