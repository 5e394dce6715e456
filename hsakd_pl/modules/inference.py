"""A frozen network made ready for inference: norms folded into convolutions, weights cast once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from math import ceil
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from hsakd_pl.networks import HSAKDNet, NetworkOutput, StagedBackbone
from hsakd_pl.winograd import set_winograd

ROWS_AT_ONCE = 64  # on a CPU, whose caches then hold a layer's output until the next layer reads it


class InferenceNetwork(nn.Module):
    """A copy of ``network`` for its fixed weights: the same outputs up to rounding, for less work.

    Batch norms become part of the convolution right before them. With ``dtype``, convolutions and linear layers
    compute in it, outside of autocast, which would cast their weights at every step; the norms that are left keep
    their statistics. A network of another make than this package's keeps its norms: its layers may be used twice. On a
    CPU, the filters of 3x3 convolutions are transformed for Winograd's algorithm.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.dtype = deepcopy(network).requires_grad_(False).eval(), dtype
        if isinstance(network, HSAKDNet | StagedBackbone):
            self.network = _folded(self.network)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
        set_winograd(self.network, on=True, frozen=True)

    def forward(self, images: Tensor) -> NetworkOutput | Tensor:
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self._infer(images)
        rows = min(ROWS_AT_ONCE, ceil(len(images) / torch.get_num_threads()))
        return _joined(_by_threads(self._infer, images.split(rows)))

    def _infer(self, images: Tensor) -> NetworkOutput | Tensor:
        if self.dtype is None:
            return self.network(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.to(self.dtype))


def _by_threads(function: Callable[[Tensor], Any], parts: Sequence[Tensor]) -> list[Any]:
    """``function`` of each part, a thread a part: so threads need not wait for each other in every layer."""
    threads = torch.get_num_threads()
    if threads == 1 or _profiler_enabled():  # a profiler sees one thread
        return [function(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself reaches some of the others


def _joined(parts: list[Any]) -> NetworkOutput | Tensor:
    """The output for a batch from those for its parts."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    logits, joint_logits = zip(*parts, strict=True)
    return NetworkOutput(torch.cat(logits), tuple(torch.cat(branch) for branch in zip(*joint_logits, strict=True)))


def _folded(module: nn.Module) -> nn.Module:
    """Fold the largest parts that can be traced: not those whose Python code looks at the images' shape."""
    try:
        return fuse(module, inplace=True)  # of what is a copy already
    except (TraceError, NotImplementedError):  # the latter: a ModuleList, which has no forward
        for name, child in module.named_children():
            setattr(module, name, _folded(child))
        return module
