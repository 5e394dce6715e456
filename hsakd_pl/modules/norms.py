"""The condition under which BatchNorm layers cannot train, checked before PyTorch runs into it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hsakd_pl.errors import UsageError


@contextmanager
def checked_batch_norms(module: nn.Module) -> Iterator[None]:
    """Raise UsageError, inside the context, where a BatchNorm layer trains on one value per channel."""
    hooks = [
        layer.register_forward_pre_hook(check_input)
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_input(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise UsageError if a norm in training mode gets an input (1, C, 1, 1), of which it cannot take a variance."""
    features = inputs[0]
    if norm.training and features.numel() == features.shape[1]:
        raise UsageError(
            "batch_size: BatchNorm needs more than one value per channel, but the last batch has 1 image; "
            "choose another batch_size."
        )
