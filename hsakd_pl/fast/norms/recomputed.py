"""Compute the outputs of norms again in the backward pass, instead of keeping them from the forward pass.

The convolution after a norm and a ReLU keeps its input for its gradients, and the norm keeps its own. One of these maps
is enough, since computing the other again takes one pass over memory.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

ATTRIBUTE = "_hsakd_pl_source"  # of a tensor that can be computed again


class Kept(NamedTuple):
    """A tensor, and how often it had been changed in place when it was kept."""

    tensor: Tensor
    version: int

    def unchanged(self) -> Tensor:
        """Return the tensor; raise RuntimeError if it was changed since, as PyTorch does."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a map of {tuple(self.tensor.shape)} that gradients need was changed in place after it was used"
            )
        return self.tensor


class Source(NamedTuple):
    """Hold what the outputs of a norm are computed from.

    Attributes:
        compute: function of the tensors that returns the outputs.
        inputs: the tensors.
    """

    compute: Callable[..., Tensor]
    inputs: tuple[Kept, ...]


def kept(tensor: Tensor) -> Kept:
    """Keep a tensor as it is now, without its history, of which it may be a part itself."""
    return Kept(tensor.detach(), tensor._version)


def set_source(outputs: Tensor, compute: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Let layers inside of :func:`outputs_recomputed` keep the inputs of a function in place of its outputs."""
    setattr(outputs, ATTRIBUTE, Source(compute, tuple(map(kept, inputs))))


def outputs_recomputed() -> AbstractContextManager[Any]:
    """Let layers keep the sources of tensors for their gradients, where these have one.

    Hooks that are set already, as by activation checkpointing, stay the only ones.
    """
    if not torch.is_grad_enabled() or _are_hooks_in_use():
        return nullcontext()
    return saved_tensors_hooks(_pack, _unpack)


def _are_hooks_in_use() -> bool:
    """Return whether hooks of kept tensors are set or forbidden, or this PyTorch cannot tell."""
    functions: Any = torch._C._autograd  # not all are declared
    top = getattr(functions, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None or not functions._saved_tensors_hooks_is_enabled()


def _pack(tensor: Tensor) -> Kept | Source:
    source: Source | None = vars(tensor).get(ATTRIBUTE)
    return kept(tensor) if source is None else source


def _unpack(packed: Kept | Source) -> Tensor:
    if isinstance(packed, Kept):
        return packed.unchanged()
    with torch.no_grad():
        return packed.compute(*(tensor.unchanged() for tensor in packed.inputs))
