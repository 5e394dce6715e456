"""Losses keep full precision where a network's outputs have half: sums over a batch or over classes lose too much."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


def full_precision(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """Let a function compute outside of autocast, half precision tensors among its arguments brought to float32."""

    @wraps(function)
    def computed(*arguments: Inputs.args, **options: Inputs.kwargs) -> Result:
        arguments, options = tree_map(_widened, (arguments, options))
        device = next(leaf.device.type for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*arguments, **options)

    return computed


def _widened(leaf: Any) -> Any:
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.float() if half else leaf
