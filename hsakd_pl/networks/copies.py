"""Copy networks that ``copy.deepcopy`` refuses."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

import torch.nn as nn
from torch import Tensor

Module = TypeVar("Module", bound=nn.Module)


def copied(network: Module) -> Module:
    """Return a deep copy of a network, in which tensors that were computed are detached.

    ``copy.deepcopy`` refuses a tensor with a history, such as the weight that :func:`torch.nn.utils.weight_norm` keeps
    next to its parameters, or an output that a layer remembers.
    """
    memo: dict[int, Any] = {}
    for layer in network.modules():
        for tensor in _tensors(vars(layer)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return deepcopy(network, memo)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value made of containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
