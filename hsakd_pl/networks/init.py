"""Initial weights of the published code, as functions for ``nn.Module.apply``."""

import math

import torch.nn as nn


def conv_fan_out(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (k * k * out), groups not divided out; biases 0; norms 1 and 0."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def linear_zero_bias(module: nn.Module) -> None:
    """Linear layers keep PyTorch's weights and get bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def linear_normal(module: nn.Module) -> None:
    """Linear layers N(0, 0.01), meaning a standard deviation of 0.01, and bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
