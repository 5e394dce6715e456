"""A frozen network made ready for inference: norms folded into convolutions, weights cast once."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from math import ceil

import torch
import torch.nn as nn
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.fx import Node, Tracer
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hsakd_pl.fast import winograd
from hsakd_pl.networks import Classifier, Network, NetworkOutput

ROWS_AT_ONCE = 64  # on a CPU, whose caches then hold a layer's output until the next layer reads it


class Folded:
    """A copy of ``network`` for its fixed weights: the same outputs up to rounding, for less work.

    Batch norms become part of the convolution right before them. With ``dtype``, convolutions and linear layers
    compute in it, outside of autocast, which would cast their weights at every step; the norms that are left keep
    their statistics. A user's own network keeps its norms: its layers may be used twice. With ``parts``, on a CPU,
    filters of 3x3 convolutions are transformed for Winograd's algorithm and each thread takes a part of the images.
    """

    def __init__(self, network: Network, dtype: torch.dtype | None = None, parts: bool = True) -> None:
        self.network, self.dtype, self.parts = deepcopy(network).requires_grad_(False).eval(), dtype, parts
        self.pool: ThreadPoolExecutor | None = None
        if not isinstance(network, Classifier):
            fold(self.network)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
        if parts:
            winograd.convert(self.network, frozen=True)

    def __enter__(self) -> "Folded":
        threads = torch.get_num_threads()
        if self.parts and threads > 1 and (set_threads := _openmp()) is not None:
            self.pool = ThreadPoolExecutor(threads, initializer=_take_one_thread, initargs=(set_threads,))
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def __call__(self, images: Tensor) -> NetworkOutput:
        if images.device.type != "cpu" or torch.compiler.is_compiling() or not self.parts:
            return self._infer(images)
        parts = images.split(min(ROWS_AT_ONCE, ceil(len(images) / torch.get_num_threads())))
        by = map if self.pool is None or _profiler_enabled() else self.pool.map  # a profiler sees one thread
        return _joined(list(by(self._infer, parts)))

    @torch.no_grad()
    def _infer(self, images: Tensor) -> NetworkOutput:
        if self.dtype is None:
            return self.network.outputs(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.network.outputs(images.to(self.dtype))


def _openmp() -> Callable[[int], None] | None:
    """Find OpenMP's ``omp_set_num_threads``, which speaks for the calling thread alone, where PyTorch has loaded it."""
    try:
        return ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):
        return None


def _take_one_thread(set_threads: Callable[[int], None]) -> None:
    torch.get_num_threads()  # at a thread's first use of it PyTorch sets the number of all threads
    set_threads(1)


def _joined(parts: list[NetworkOutput]) -> NetworkOutput:
    """Join the outputs for the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    logits, joint_logits, features, embeddings = zip(*parts, strict=True)
    branches, maps = ([torch.cat(each) for each in zip(*of, strict=True)] for of in (joint_logits, features))
    return NetworkOutput(torch.cat(logits), branches, maps, None if embeddings[0] is None else torch.cat(embeddings))


def is_norm(layer: nn.Module) -> bool:
    """Whether it is a batch norm alone, or timm's, whose children, called in turn, are what follows the norm in it."""
    kind = type(layer)
    return kind is nn.BatchNorm2d or (issubclass(kind, nn.BatchNorm2d) and kind.__name__ == "BatchNormAct2d")


class NormsWhole(Tracer):
    """Traces calls of layers, and into none of the norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def fold(module: nn.Module) -> None:
    """Make batch norms part of the convolutions right before them, in place, in eval mode.

    In the largest parts that can be traced: not those whose Python code looks at the images' shape.
    """
    try:
        nodes = NormsWhole().trace(module).nodes
    except (TraceError, NotImplementedError):  # the latter: a ModuleList, which has no forward
        for child in module.children():
            fold(child)
        return
    layers, calls = dict(module.named_modules()), [node for node in nodes if node.op == "call_module"]
    for node in calls:
        before = node.args[0] if node.args else None
        if isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1:
            names = str(before.target), str(node.target)
            convolution, norm = (layers[name] for name in names)
            once = all(sum(call.target == name for call in calls) == 1 for name in names)
            if once and isinstance(convolution, nn.Conv2d) and is_norm(norm):
                module.set_submodule(names[0], fuse_conv_bn_eval(convolution, norm))
                module.set_submodule(names[1], nn.Sequential(*norm.children()))  # timm's: its activation
