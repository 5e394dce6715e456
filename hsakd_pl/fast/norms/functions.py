"""Compute a norm with addition and ReLU, and its gradients, by the C kernel.

These are functions of autograd rather than registered operators: they run only where no compiler or tracer looks on,
and registered operators take longer to call than small maps to compute.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hsakd_pl.fast.kernels.library import library

MIN_CHANNELS = 16  # lanes of the widest vectors; norms.c does not take fewer
MIN_SHARED = 32768  # values that threads share; PyTorch's GRAIN_SIZE


class NormReLU(Function):
    """Compute ``relu(batch_norm(maps) + residual)`` for channels_last maps on a CPU.

    Args:
        maps: maps (N, C, H, W) in float32 or bfloat16, with at least 16 channels.
        residual: maps of the same shape and type, or None.
        weight: float32 weights (C,).
        bias: float32 biases (C,).
        mean: float32 means (C,); with ``training`` those of the maps are written to it.
        variance: float32 biased variances (C,), likewise.
        epsilon: added to the variance.
        training: normalise by the statistics of the maps.
        update: called once mean and variance are written; before the maps are kept for the gradients, where activation
            checkpointing ends a second pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        epsilon: float,
        training: bool,
        update: Callable[[], None] | None = None,
    ) -> Tensor:
        outputs = torch.empty_like(maps)
        _call("norm_relu", (maps, residual, weight, bias, mean, variance, outputs), maps, epsilon, training)
        if update is not None:
            update()
        ctx.save_for_backward(maps, outputs if residual is not None else None, weight, bias, mean, variance)
        ctx.settings = (epsilon, training)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, residual, weight, bias = NormReLUGradients.apply(gradient, *ctx.saved_tensors, *ctx.settings)
        return maps, residual, weight, bias, None, None, None, None, None


class NormReLUGradients(Function):
    """Compute the gradients of maps, residual (or None), weight and bias, given that of the outputs.

    The arguments after the gradient are those of :class:`NormReLU`, but for ``outputs``: the outputs (N, C, H, W) if a
    residual was added, otherwise None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        maps: Tensor,
        outputs: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        epsilon: float,
        training: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        ctx.save_for_backward(gradient, maps, outputs, weight, bias, mean, variance)
        ctx.settings = (epsilon, training)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_maps = torch.empty_like(maps)
        of_residual = torch.empty_like(maps) if outputs is not None else None
        of_weight = torch.empty_like(weight)
        of_bias = torch.empty_like(bias)
        written = (of_maps, of_residual, of_weight, of_bias)
        tensors = (gradient, maps, outputs, weight, bias, mean, variance, *written)
        _call("norm_relu_gradients", tensors, maps, epsilon, training)
        return written

    @staticmethod
    def backward(ctx: Any, *second_gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate the gradients by PyTorch's own operators: only gradient penalties need this."""
        gradient, maps, outputs, weight, bias, mean, variance = ctx.saved_tensors
        epsilon, training = ctx.settings
        used_mean, used_variance = (None, None) if training else (mean, variance)
        with torch.enable_grad():
            variables = [tensor.detach().requires_grad_() for tensor in (gradient, maps, weight, bias)]
            gradient, maps, weight, bias = variables
            normalized = F.batch_norm(maps, used_mean, used_variance, weight, bias, training, eps=epsilon)
            masked = gradient * ((normalized if outputs is None else outputs) > 0)
            of_maps, of_weight, of_bias = torch.autograd.grad(
                normalized, (maps, weight, bias), masked, create_graph=True
            )
            pairs = zip((of_maps, masked, of_weight, of_bias), second_gradients, strict=True)
            used = [pair for pair in pairs if pair[0].requires_grad and pair[1] is not None]
            seconds = torch.autograd.grad(
                [first for first, _ in used], variables, [second for _, second in used], allow_unused=True
            )
        of_gradient, of_maps, of_weight, of_bias = seconds
        return of_gradient, of_maps, None, of_weight, of_bias, None, None, None, None


def computed_again(
    epsilon: float, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Return the outputs of :class:`NormReLU` without a residual, given the statistics that it normalised by."""
    outputs = torch.empty_like(maps)
    _call("norm_relu", (maps, None, weight, bias, mean, variance, outputs), maps, epsilon, False)
    return outputs


def _call(name: str, tensors: tuple[Tensor | None, ...], maps: Tensor, epsilon: float, training: bool) -> None:
    channels = maps.shape[1]
    rows = maps.numel() // channels
    threads = torch.get_num_threads() if maps.numel() >= MIN_SHARED else 1
    pointers = (tensor.data_ptr() if tensor is not None else None for tensor in tensors)
    half = maps.dtype == torch.bfloat16
    if getattr(library(), name)(*pointers, rows, channels, epsilon, half, training, threads):
        raise MemoryError(f"not enough memory for a norm of maps of {tuple(maps.shape)}")
