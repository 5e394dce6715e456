"""Frozen networks prepared for inference: BatchNorm folded into convolutions, weights cast once."""

import ctypes
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from hsakd_pl.fast import norms, winograd
from hsakd_pl.fast.norms.layers import has_hooks
from hsakd_pl.networks import Classifier, Network, NetworkOutput
from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.network import joined

ROWS_AT_ONCE = 64  # on a CPU: its caches then keep a layer's output until the next layer reads it


class Folded:
    """A copy of a network with fixed weights, which computes the same outputs up to rounding with less work.

    BatchNorm layers are folded into the convolutions before them, except in networks that the package did not build,
    whose layers may be used twice. With ``dtype``, convolutions and linear layers compute in that type, outside
    autocast, which would cast their weights in every step. With ``parts``, on a CPU, 3x3 filters are transformed once
    for Winograd's algorithm, norms that remain are one operation with the ReLU after them, and each thread computes a
    part of the images.
    """

    def __init__(self, network: Network, dtype: torch.dtype | None = None, parts: bool = True) -> None:
        self.network = copied(network).requires_grad_(False).eval()
        for kernels in (winograd, norms):  # those of the fit in which the network is evaluated
            kernels.revert(self.network)
        self.dtype = dtype
        self.parts = parts
        self.pool: ThreadPoolExecutor | None = None
        if not isinstance(network, Classifier):
            fold(self.network)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
        if parts:
            winograd.convert(self.network, frozen=True)
            norms.convert(self.network)

    def __enter__(self) -> "Folded":
        threads = torch.get_num_threads()
        set_threads = _openmp()
        if self.parts and threads > 1 and set_threads is not None:
            self.pool = ThreadPoolExecutor(threads, initializer=_take_one_thread, initargs=(set_threads,))
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def __call__(self, images: Tensor) -> NetworkOutput:
        return joined(self._in_parts(self.network.outputs, images))

    def classify(self, images: Tensor) -> Tensor:
        """Return the class logits (B, N) of images (B, 3, S, S); the branches are not computed."""
        return torch.cat(self._in_parts(self.network.without_branches, images))

    def _in_parts(self, function: Callable[[Tensor], Any], images: Tensor) -> list[Any]:
        """Return what a function of the network returns for each part of a batch."""
        infer = partial(self._infer, function)
        if images.device.type != "cpu" or torch.compiler.is_compiling() or not self.parts:
            return [infer(images)]
        parts = images.split(min(ROWS_AT_ONCE, ceil(len(images) / torch.get_num_threads())))
        if self.pool is None or _profiler_enabled():  # a profiler sees one thread
            return [infer(part) for part in parts]
        return list(self.pool.map(infer, parts))

    @torch.no_grad()
    def _infer(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        if self.dtype is None:
            return function(images)
        with torch.autocast(images.device.type, enabled=False):
            return function(images.to(self.dtype))


def _openmp() -> Callable[[int], None] | None:
    """Return OpenMP's ``omp_set_num_threads``, which acts on the calling thread alone, if PyTorch has loaded it."""
    try:
        return ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):
        return None


def _take_one_thread(set_threads: Callable[[int], None]) -> None:
    torch.get_num_threads()  # at a thread's first use of it PyTorch sets the number of all threads
    set_threads(1)


def is_norm(layer: nn.Module) -> bool:
    """Return True for BatchNorm2d itself and timm's BatchNormAct2d, whose children are applied after the norm."""
    kind = type(layer)
    return kind is nn.BatchNorm2d or (issubclass(kind, nn.BatchNorm2d) and kind.__name__ == "BatchNormAct2d")


def has_own_weight(layer: nn.Module) -> bool:
    """Return True unless a layer computes its weight, by a parametrization or before each call, or is observed."""
    return not is_parametrized(layer) and not has_hooks(layer)


class NormsWhole(Tracer):
    """Trace the calls of layers, without looking into norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def fold(module: nn.Module) -> None:
    """Fold BatchNorm layers into the convolutions before them, in place, in eval mode.

    Works on the largest parts that can be traced: not on those whose Python code depends on the images' shape.
    """
    try:
        nodes = NormsWhole().trace(module).nodes
    except Exception:  # code that depends on values raises anything; a ModuleList has no forward
        for child in module.children():
            fold(child)
        return
    layers = dict(module.named_modules())
    calls = [node for node in nodes if node.op == "call_module"]
    number_of_calls = Counter(str(call.target) for call in calls)
    for call in calls:
        source = call.args[0] if call.args else None
        if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        norm_path = str(call.target)
        convolution_path = str(source.target)
        norm = layers[norm_path]
        convolution = layers[convolution_path]
        called_once = number_of_calls[norm_path] == 1 and number_of_calls[convolution_path] == 1
        if called_once and is_norm(norm) and isinstance(convolution, nn.Conv2d) and has_own_weight(convolution):
            module.set_submodule(convolution_path, fuse_conv_bn_eval(convolution, norm))
            module.set_submodule(norm_path, nn.Sequential(*norm.children()))  # timm's: its activation
