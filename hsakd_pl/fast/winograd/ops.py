"""Register the convolution as a PyTorch operator with gradients, which ``torch.compile`` supports."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from hsakd_pl.fast.kernels.library import library

PANEL = 16  # output channels that winograd.c stores next to each other
MAX_FILTERS = 256 * 256  # input times output channels; with more, PyTorch computes weight gradients faster
MAX_SUMS = 2**26  # floats of the partial sums of weight gradients, over all threads

# F(4x4, 3x3) of Lavin and Gray, arXiv 1509.09308; rows are multiplied by 24
ONE_DIMENSION = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
TRANSFORM = torch.kron(ONE_DIMENSION, ONE_DIMENSION)  # (36, 9)


def outputs_last(weight: Tensor) -> Tensor:
    """Return the same weights (out, in, 3, 3) stored as (in, 3, 3, out), the order that the kernel reads."""
    return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _weights_gradient(gradient: Tensor) -> Tensor:
    """Return the weight gradient (out, in, 3, 3) given that of transformed weights (36, out / 16, in, 16)."""
    _, panels, inputs, _ = gradient.shape
    weight = (TRANSFORM.T @ gradient.flatten(1)).view(9, panels, inputs, PANEL).permute(1, 3, 0, 2)
    return weight.reshape(-1, 3, 3, inputs).permute(0, 3, 1, 2)


@torch.library.custom_op("hsakd_pl::conv3x3", mutates_args=())
def conv3x3(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``F.conv2d(images, weight, bias, padding=1)`` up to rounding, in channels_last.

    Args:
        images: float32 images (N, in, H, W) on a CPU.
        weight: weights (out, in, 3, 3), which are copied unless they are :func:`outputs_last`; both numbers of
            channels are multiples of 16.
        bias: bias (out,).

    Returns:
        Images (N, out, H, W).

    Raises ValueError if the number of channels differs between images and weights.
    """
    if images.dim() != 4 or images.shape[1:2] != weight.shape[1:2]:
        raise ValueError(f"images of {tuple(images.shape)} do not fit weights of {tuple(weight.shape)}")
    images = images.contiguous(memory_format=torch.channels_last)
    outputs = _empty_like(images, len(images), len(weight), *images.shape[2:])
    _call("winograd_convolve", (images, outputs_last(weight), bias, outputs), images, len(weight))
    return outputs


@torch.library.custom_op("hsakd_pl::conv3x3_weight_gradient", mutates_args=())
def conv3x3_weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Return the weight gradient of :func:`conv3x3` given that of its outputs.

    Args:
        images: images (N, in, H, W) of the convolution.
        gradient: gradient (N, out, H, W) of its outputs.

    Returns:
        Gradient (out, in, 3, 3), in channels_last for any number of channels: a compiled graph relies on its strides.
    """
    inputs = images.shape[1]
    outputs = gradient.shape[1]
    images = images.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    if inputs * outputs > MAX_FILTERS:
        weights_gradient = conv2d_weight(images, [outputs, inputs, 3, 3], gradient, padding=1)
        return weights_gradient.contiguous(memory_format=torch.channels_last)
    filters = images.new_empty(36, outputs // PANEL, inputs, PANEL)
    threads = min(torch.get_num_threads(), MAX_SUMS // filters.numel())
    _call("winograd_filter_gradients", (images, gradient, filters), images, outputs, threads)
    return _weights_gradient(filters).contiguous(memory_format=torch.channels_last)


def _empty_like(images: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def _call(name: str, tensors: tuple[Tensor | None, ...], images: Tensor, outputs: int, *rest: int) -> None:
    number, inputs, height, width = images.shape
    pointers = (tensor.data_ptr() if tensor is not None else None for tensor in tensors)
    if getattr(library(), name)(*pointers, number, height, width, inputs, outputs, *rest):
        raise MemoryError(f"not enough memory for a convolution of images of {tuple(images.shape)}")


@conv3x3.register_fake
def _(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _empty_like(images, len(images), len(weight), *images.shape[2:])


@conv3x3_weight_gradient.register_fake
def _(images: Tensor, gradient: Tensor) -> Tensor:
    return _empty_like(images, gradient.shape[1], images.shape[1], 3, 3)


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return conv3x3(gradient, weight.flip(2, 3).transpose(0, 1), None)


def _keep_two(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    images, weight = ctx.saved_tensors
    needs_images, needs_weight, needs_bias = ctx.needs_input_grad
    return (
        _input_gradient(gradient, weight) if needs_images else None,
        conv3x3_weight_gradient(images, gradient) if needs_weight else None,
        gradient.sum((0, 2, 3)) if needs_bias else None,
    )


def _second_backward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    images, gradient = ctx.saved_tensors
    return _input_gradient(gradient, weight), conv3x3(images, weight, None)


conv3x3.register_autograd(_backward, setup_context=_keep_two)
conv3x3_weight_gradient.register_autograd(_second_backward, setup_context=_keep_two)
