"""Frozen networks prepared for inference: BatchNorm folded into convolutions, weights cast once."""

import ctypes
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from operator import itemgetter
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.fx import Node, Tracer
from torch.utils._pytree import tree_map_only

from hsakd_pl.fast import norms, winograd
from hsakd_pl.fast.parked import Parked
from hsakd_pl.fast.proofs import Observed, RandomState, are_close, fused
from hsakd_pl.networks import Classifier, Network, NetworkOutput
from hsakd_pl.networks.copies import SavedBuffers, copied
from hsakd_pl.networks.network import joined

ROWS_AT_ONCE = 64  # on a CPU: its caches then keep a layer's output until the next layer reads it
PROOF_ROWS = 8  # images that the network itself classifies too, once, to compare the copy with it


class Folded:
    """A copy of a network with fixed weights, which computes the same outputs up to rounding with less work.

    BatchNorm layers are folded into the convolutions before them, except in networks that the package did not build,
    whose layers may be used twice. With ``dtype``, convolutions and linear layers compute in that type, outside
    autocast, which would cast their weights in every step. With ``parts``, on a CPU, 3x3 convolutions use Winograd's
    algorithm, norms that remain are one operation with the ReLU after them, and each thread computes a part of the
    images.

    The first batch is compared with the network's own outputs. Where they differ, where its buffers change in a call,
    and once its weights or hooks change, the network itself computes everything; where the outputs for an image
    depend on the other images, the batch is not split. With ``park``, the network's own weights are in a file until the
    copy is no longer used.
    """

    def __init__(
        self, network: Network, dtype: torch.dtype | None = None, parts: bool = True, park: bool = False
    ) -> None:
        self.original = network
        self.network = copied(network).requires_grad_(False).eval()
        for kernels in (winograd, norms):  # those of the fit in which the network is evaluated
            kernels.revert(self.network)
        self.dtype = dtype
        self.parts = parts
        self.splits: bool | None = None  # None until the first batch
        self.equals = True  # the copy's outputs are the network's
        self.pool: ThreadPoolExecutor | None = None
        if not isinstance(network, Classifier):
            fold(self.network)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
        if parts:
            winograd.convert(self.network, frozen=True)
            norms.convert(self.network)
        self.parked = Parked(network) if park else None
        self.observed = Observed(network)

    def __enter__(self) -> "Folded":
        threads = torch.get_num_threads()
        set_threads = _openmp()
        if self.parts and threads > 1 and set_threads is not None:
            self.pool = ThreadPoolExecutor(threads, initializer=_take_one_thread, initargs=(set_threads,))
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()
        if self.parked is not None:
            self.parked.restore()

    def __call__(self, images: Tensor) -> NetworkOutput:
        return self._compute("outputs", joined, images)

    def classify(self, images: Tensor) -> Tensor:
        """Return the class logits (B, N) of images (B, 3, S, S); the branches are not computed."""
        return self._compute("without_branches", torch.cat, images)

    def _compute(self, name: str, join: Callable[[list[Any]], Any], images: Tensor) -> Any:
        """Return what a function of the network returns, computed by the copy where it is proven equal."""
        if not torch.compiler.is_compiling():
            if not self.observed.is_unchanged():
                self.equals = False
            if self.equals and self.splits is None and len(images) > 1:
                return self._compare(name, join, images)
            if not self.equals or self.splits is None:  # the latter: a single image does not show it
                return self._infer(getattr(self.original, name), images)
        return join(self._in_parts(getattr(self.network, name), images))

    def _compare(self, name: str, join: Callable[[list[Any]], Any], images: Tensor) -> Any:
        """Find out with the first batch whether it can be split, and whether the copy is equal to the network."""

        def original(batch: Tensor) -> Any:
            return self._infer(getattr(self.original, name), batch.clone())  # which it may change in place

        state = RandomState(images.device)
        buffers = SavedBuffers(self.original)
        rows = images[:PROOF_ROWS]
        expected = original(rows)
        if not self.observed.is_unchanged():  # its buffers follow the images that it is called with
            self.equals = False
            buffers.restore()
            state.restore()
            return original(images)
        is_random = state.has_changed()  # threads would draw its numbers in any order
        state.restore()
        in_halves = join([original(half) for half in rows.split(ceil(len(rows) / 2))])
        state.restore()
        self.splits = not (is_random or self.observed.has_hooks) and are_close(in_halves, expected)
        if not self.splits:
            rows = images
            expected = original(images)
            state.restore()
        try:
            found = join(self._in_parts(getattr(self.network, name), images.clone()))
        except Exception:  # layers of others may refuse weights of another type in any way
            self.equals = False
        else:
            self.equals = are_close(tree_map_only(Tensor, itemgetter(slice(len(rows))), found), expected)
        if self.equals:
            if self.parked is not None:
                self.parked.release()
            return found
        state.restore()
        return original(images)

    def _in_parts(self, function: Callable[[Tensor], Any], images: Tensor) -> list[Any]:
        """Return what a function of the copy returns for each part of a batch."""
        infer = partial(self._infer_cast, function)
        if images.device.type != "cpu" or torch.compiler.is_compiling() or not (self.parts and self.splits):
            return [infer(images)]
        parts = images.split(min(ROWS_AT_ONCE, ceil(len(images) / torch.get_num_threads())))
        if self.pool is None or _profiler_enabled():  # a profiler sees one thread
            return [infer(part) for part in parts]
        return list(self.pool.map(infer, parts))

    @torch.no_grad()
    def _infer(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        return function(images)

    @torch.no_grad()
    def _infer_cast(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
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
        if not called_once or not is_norm(norm) or not isinstance(convolution, nn.Conv2d):
            continue
        fused_convolution = fused(convolution, cast(nn.BatchNorm2d, norm))
        if fused_convolution is not None:
            convolution.weight = fused_convolution.weight  # in the same layer, which the tracer refers to
            convolution.bias = fused_convolution.bias
            module.set_submodule(norm_path, nn.Sequential(*norm.children()))  # timm's: its activation
