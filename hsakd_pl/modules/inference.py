"""A frozen network made ready for inference: norms folded into convolutions, weights cast once."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from hsakd_pl.networks import HSAKDNet, NetworkOutput, StagedBackbone

ROWS_AT_ONCE = 32  # on a CPU, whose caches then hold a layer's output until the next layer reads it


class InferenceNetwork(nn.Module):
    """A copy of ``network`` for its fixed weights: the same outputs up to rounding, for less work.

    Batch norms become part of the convolution right before them. With ``dtype``, convolutions and linear layers
    compute in it, outside of autocast, which would cast their weights at every step; the norms that are left keep
    their statistics. A network of another make than this package's is only copied: its layers may be used twice.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.dtype = deepcopy(network).requires_grad_(False).eval(), dtype
        if isinstance(network, HSAKDNet | StagedBackbone):
            self.network = _folded(self.network)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)

    def forward(self, images: Tensor) -> NetworkOutput | Tensor:
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self._infer(images)
        return _joined([self._infer(rows) for rows in images.split(ROWS_AT_ONCE)])

    def _infer(self, images: Tensor) -> NetworkOutput | Tensor:
        if self.dtype is None:
            return self.network(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.to(self.dtype))


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
