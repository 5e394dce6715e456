"""Copy networks that ``copy.deepcopy`` refuses."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

Module = TypeVar("Module", bound=nn.Module)


def copied(network: Module) -> Module:
    """Return a deep copy of a network, in which tensors that were computed are detached.

    ``copy.deepcopy`` refuses a tensor with a history, such as the weight that :func:`torch.nn.utils.weight_norm` keeps
    next to its parameters, or an output that a layer remembers. Objects that cannot be copied, such as locks and open
    files, are shared with the network. A function in it that uses its layers uses the same in a copy: see
    :class:`SavedBuffers`.
    """
    attributes = [value for layer in network.modules() for value in _values(vars(layer))]
    detached = {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return deepcopy(network, dict[int, Any](detached))
    except Exception:  # objects refuse to be copied in any way
        return deepcopy(network, detached | _not_copyable(attributes, detached))


class SavedBuffers:
    """The dense buffers of a network and their values, to restore them after calls that change or replace them.

    Examples:
        >>> norm = nn.BatchNorm1d(2)
        >>> with SavedBuffers(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.num_batches_tracked
        tensor(0)
    """

    def __init__(self, network: nn.Module) -> None:
        self.saved = [
            (layer, name, buffer, buffer.detach().clone())
            for layer in network.modules()
            if not isinstance(layer, torch.jit.ScriptModule)
            for name, buffer in layer._buffers.items()
            if buffer is not None and buffer.layout == torch.strided
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for layer, name, buffer, value in self.saved:
            if not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)
            layer._buffers[name] = buffer

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.restore()


def _not_copyable(attributes: Iterable[Any], memo: Mapping[int, Any]) -> dict[int, Any]:
    """Return what takes the place of attributes that cannot be copied, by their id: themselves, or clones of tensors.

    ``memo`` is that of :func:`copy.deepcopy`.
    """
    shared: dict[int, Any] = {}
    for value in sorted(attributes, key=callable):  # last those that may be methods of an object with the others
        if not isinstance(value, nn.Module):
            try:
                deepcopy(value, {**memo, **shared})
            except Exception:
                shared[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value
    return shared


def _values(value: Any) -> Iterator[Any]:
    """Yield the values in a value made of containers."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from _values(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _values(entry)
    else:
        yield value
