"""Round weights and activations in PyTorch to the numbers that an int8 ONNX file has."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

LARGEST = 255  # of the unsigned activations
LARGEST_WEIGHT = 127  # onnxruntime leaves -128 out, so that the grid of the weights is symmetric
LARGEST_BIAS = 2**31 - 1  # biases are integers of 32 bits, in units of the input's scale times that of the weight
SMALLEST = torch.finfo(torch.float32).tiny  # a smaller scale is replaced by 1, as onnxruntime does


def grids_of(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales (float32) and zero points (int32) of activations with these ranges, as onnxruntime does.

    Args:
        lowest: smallest values, of any shape.
        highest: largest values.

    Examples:
        >>> grids_of(torch.tensor([0.0, -1.0]), torch.tensor([2.55, 1.55]))
        (tensor([0.0100, 0.0100]), tensor([  0, 100], dtype=torch.int32))
    """
    low = lowest.double().clamp(max=0)
    scale = (highest.double().clamp(min=0) - low) / LARGEST
    is_constant = scale < SMALLEST
    scale = scale.masked_fill(is_constant, 1)
    zero_point = (-low / scale).round().masked_fill(is_constant, 0)
    return scale.float(), zero_point.int()


def weight_scales(weight: Tensor) -> Tensor:
    """Return the scale of each output channel of a weight (C, ...): (C,), without a gradient."""
    scales = weight.detach().flatten(1).abs().amax(1).double() / LARGEST_WEIGHT
    return scales.masked_fill(scales < SMALLEST, 1).float()


class ActivationQuantiser(nn.Module):
    """Round an activation to its grid, and in training record its smallest and largest value in the batch.

    Before the first step, which sets the range, training uses the range of the batch and evaluation does not round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.range: Tensor | None = None  # (2,): smallest and largest value
        self.batch_range: Tensor | None = None  # of the last batch
        self.grid: tuple[Tensor, Tensor] | None = None

    def forward(self, activation: Tensor, is_moved: bool = False) -> Tensor:
        if self.training and not is_moved:
            self.batch_range = torch.stack(activation.detach().aminmax())
            if self.range is None:
                self.grid = grids_of(*self.batch_range)
        elif self.range is None and not self.training:
            self.grid = None
        if self.grid is None:
            return activation
        return torch.fake_quantize_per_tensor_affine(activation, *self.grid, 0, LARGEST)

    def set_range(self, value: Tensor) -> None:
        """Set the range (2,)."""
        self.range = value
        self.grid = grids_of(*value)


class QuantisedLayer(nn.Module):
    """Apply a convolution or linear layer with the weights and biases that an int8 file has.

    Args:
        function: the operator.
        source: quantiser of the input.
        eps: epsilon of the norm that is folded into the layer, with its statistics; None without a norm.
    """

    def __init__(self, function: Callable[..., Tensor], source: ActivationQuantiser, eps: float | None) -> None:
        super().__init__()
        self.function = function
        self.sources = (source,)  # it is a module of the graph
        self.eps = eps

    def forward(
        self, activation: Tensor, weight: Tensor, bias: Tensor | None, others: list[Any], norm: list[Tensor | None]
    ) -> Tensor:
        if self.eps is not None:
            weight, bias = folded(weight, bias, norm, self.eps)
        scales = weight_scales(weight)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        if bias is not None and self.sources[0].grid is not None:
            scale, _ = self.sources[0].grid
            bias = rounded_bias(bias, scale * scales)
        return self.function(activation, rounded, bias, *others)


def folded(weight: Tensor, bias: Tensor | None, norm: list[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a convolution into which a norm is folded; both get gradients.

    Args:
        weight: weight (C, ...) of the convolution.
        bias: its bias (C,).
        norm: weight, bias, running mean and running variance (C,) of the norm; the first two may be None.
        eps: epsilon of the norm.
    """
    gamma, beta, mean, variance = norm
    assert mean is not None and variance is not None, "the norm has statistics"
    factor = (variance + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma
    shift = (0 if bias is None else bias) - mean
    folded_bias = shift * factor if beta is None else shift * factor + beta
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), folded_bias


def rounded_bias(bias: Tensor, scales: Tensor) -> Tensor:
    """Return a bias (C,) in whole multiples of scales (C,), with the gradient of the bias."""
    rounded = (bias.detach().double() / scales).round().clamp(-LARGEST_BIAS, LARGEST_BIAS) * scales
    return bias + (rounded.to(bias.dtype) - bias.detach())
