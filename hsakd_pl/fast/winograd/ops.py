"""The convolution as an operator of PyTorch's, with gradients, that ``torch.compile`` takes as it is."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from hsakd_pl.fast.winograd.library import library

PANEL = 16  # output channels that kernel.c keeps side by side
MOST_FILTERS = 256 * 256  # in times out; above, gradients by Winograd's algorithm move more memory than they save work
MOST_SUMS = 2**26  # floats of the gradients that threads add up on their own

# Lavin and Gray, arXiv 1509.09308: F(4x4, 3x3), rows times 24
ONE_DIMENSION = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
TRANSFORM = torch.kron(ONE_DIMENSION, ONE_DIMENSION)  # (36, 9)


def transformed(weight: Tensor) -> Tensor:
    """Weights (out, in, 3, 3) as the kernel takes them: (36, out / 16, in, 16)."""
    outputs, inputs = weight.shape[:2]
    panels = weight.reshape(outputs // PANEL, PANEL, inputs, 9).permute(3, 0, 2, 1)
    return (TRANSFORM @ panels.reshape(9, -1)).view(36, outputs // PANEL, inputs, PANEL)


def _weights_gradient(gradient: Tensor) -> Tensor:
    """Gradients of :func:`transformed`'s result -> those of its weights."""
    _, panels, inputs, _ = gradient.shape
    weight = (TRANSFORM.T @ gradient.flatten(1)).view(9, panels, inputs, PANEL).permute(1, 3, 0, 2)
    return weight.reshape(-1, 3, 3, inputs).permute(0, 3, 1, 2)


@torch.library.custom_op("hsakd_pl::conv3x3", mutates_args=())
def conv3x3(images: Tensor, weight: Tensor, bias: Tensor | None, filters: Tensor | None) -> Tensor:
    """``F.conv2d(images, weight, bias, padding=1)`` up to rounding: (N, in, H, W) -> (N, out, H, W), channels_last.

    float32 on a CPU, channels in multiples of 16. ``filters``: the weights transformed, where that has been done.
    Raises ValueError where the images do not fit to the weights.
    """
    if images.dim() != 4 or images.shape[1:2] != weight.shape[1:2]:
        raise ValueError(f"images of {tuple(images.shape)} do not go with weights of {tuple(weight.shape)}")
    images = images.contiguous(memory_format=torch.channels_last)
    filters = transformed(weight) if filters is None else filters
    outputs = _empty_like(images, len(images), len(weight), *images.shape[2:])
    _call("winograd_convolve", (images, filters, bias, outputs), images, len(weight))
    return outputs


@torch.library.custom_op("hsakd_pl::conv3x3_weight_gradient", mutates_args=())
def conv3x3_weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Of the weights of :func:`conv3x3`, (out, in, 3, 3), for the gradient (N, out, H, W) of its result."""
    inputs, outputs = images.shape[1], gradient.shape[1]
    images, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (images, gradient))
    if inputs * outputs > MOST_FILTERS:
        return conv2d_weight(images, [outputs, inputs, 3, 3], gradient, padding=1)
    filters = images.new_empty(36, outputs // PANEL, inputs, PANEL)
    threads = min(torch.get_num_threads(), MOST_SUMS // filters.numel())
    _call("winograd_filter_gradients", (images, gradient, filters), images, outputs, threads)
    return _weights_gradient(filters)


def _empty_like(images: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def _call(name: str, tensors: tuple[Tensor | None, ...], images: Tensor, outputs: int, *rest: int) -> None:
    number, inputs, height, width = images.shape
    pointers = (tensor.data_ptr() if tensor is not None else None for tensor in tensors)
    if getattr(library(), name)(*pointers, number, height, width, inputs, outputs, *rest):
        raise MemoryError(f"not enough memory for a convolution of images of {tuple(images.shape)}")


@conv3x3.register_fake
def _(images: Tensor, weight: Tensor, bias: Tensor | None, filters: Tensor | None) -> Tensor:
    return _empty_like(images, len(images), len(weight), *images.shape[2:])


@conv3x3_weight_gradient.register_fake
def _(images: Tensor, gradient: Tensor) -> Tensor:
    return _empty_like(images, gradient.shape[1], images.shape[1], 3, 3)


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return conv3x3(gradient, weight.flip(2, 3).transpose(0, 1), None, None)


def _keep_two(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    images, weight = ctx.saved_tensors
    for_images, for_weight, for_bias, _ = ctx.needs_input_grad
    return (
        _input_gradient(gradient, weight) if for_images else None,
        conv3x3_weight_gradient(images, gradient) if for_weight else None,
        gradient.sum((0, 2, 3)) if for_bias else None,
        None,
    )


def _second_backward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    images, gradient = ctx.saved_tensors
    return _input_gradient(gradient, weight), conv3x3(images, weight, None, None)


conv3x3.register_autograd(_backward, setup_context=_keep_two)
conv3x3_weight_gradient.register_autograd(_second_backward, setup_context=_keep_two)
