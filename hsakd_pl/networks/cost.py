"""Count the multiply-adds of networks."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hsakd_pl.errors import counted, inform
from hsakd_pl.networks.copies import SavedBuffers, copied
from hsakd_pl.networks.exits import Exit, exit_logits
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network

AnyNetwork = TypeVar("AnyNetwork", bound=Network)

PYTORCHS = ("aten", "prim", "prims", "profiler")  # namespaces of operators that others did not write
# Operators that multiply matrices, in whole words of their names; those that PyTorch's counter knows are left out
MULTIPLYING = re.compile(
    r"(^|_)(mm|mv|addmv|addbmm|dot|vdot|ger|addr|linear\w*|conv\w*|rnn|lstm|gru|attention|trilinear|cdist|fft)(_|$)"
)


class Uncounted(TorchDispatchMode):
    """Count the calls of operators whose multiply-adds PyTorch's counter does not know, by name."""

    def __init__(self, known: Mapping[Any, Any]) -> None:
        super().__init__()
        self.known = known
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        namespace, _, operator = name.partition("::")
        if func.overloadpacket not in self.known and (namespace not in PYTORCHS or MULTIPLYING.search(operator)):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _counted_copy(network: AnyNetwork, image_size: int) -> tuple[AnyNetwork, Tensor]:
    """Return a copy on the CPU, in eval mode and without gradients, which the counter would follow, and an image.

    The copy of a network in half precision, for which a CPU may lack operations, is in float32.
    """
    copy = copied(network).cpu().eval().requires_grad_(False)
    dtypes = {weight.dtype: None for weight in copy.parameters() if weight.is_floating_point()}
    if dtypes.keys() <= {torch.float16, torch.bfloat16}:
        return copy.float(), torch.zeros(1, network.in_channels, image_size, image_size)
    [dtype, *_] = dtypes
    return copy, torch.zeros(1, network.in_channels, image_size, image_size, dtype=dtype)


@contextmanager
def _without_fused_recurrence(network: Network) -> Iterator[None]:
    """Compute recurrent layers by matrix products, if there are some: convolutions take longer like this."""
    if not any(isinstance(layer, nn.RNNBase) for layer in network.modules()):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on Intel's GPUs, which these flags set too
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@contextmanager
def _counter(network: Network) -> Iterator[FlopCounterMode]:
    """Count operations with attention and recurrence computed by matrix products; log what cannot be counted."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    uncounted = Uncounted(counter.flop_registry)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _without_fused_recurrence(network), uncounted, counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if uncounted.calls:
        listed = ", ".join(f"{name} ({counted(number, 'call')})" for name, number in sorted(uncounted.calls.items()))
        inform(f"The multiply-adds lack those of {listed}, which PyTorch's counter does not know: add them by hand")


@torch.no_grad()
def multiply_adds(network: Network, image_size: int) -> int:
    """Return the multiply-adds of matrix products and convolutions for one image (C, image_size, image_size).

    They are counted on a copy on the CPU; the network does not change. Attention and recurrent layers are
    counted as the matrix products that they consist of; operators that cannot be counted are named in the log. Raises
    UsageError for a size that the network cannot take.
    """
    network.check_image_size(image_size, image_size)
    network_copy, image = _counted_copy(network, image_size)
    with SavedBuffers(network), _counter(network_copy) as counter:
        network_copy(image)
    return counter.get_total_flops() // 2  # a multiply-add is two floating-point operations


class CountedOnce:
    """Return :func:`multiply_adds`, of each network and image size counted once until :meth:`clear`.

    Examples:
        >>> from hsakd_pl import create_network
        >>> count = CountedOnce()
        >>> count(create_network("resnet8", branches=False), 32)
        12507392
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[Network, int], int] = {}

    def __call__(self, network: Network, image_size: int) -> int:
        if (network, image_size) not in self.counts:
            self.counts[network, image_size] = multiply_adds(network, image_size)
        return self.counts[network, image_size]

    def clear(self) -> None:
        """Forget all counts, as networks may have changed."""
        self.counts.clear()


@torch.no_grad()
def multiply_adds_until(network: HSAKDNet, image_size: int, exits: Callable[[HSAKDNet], Sequence[Exit]]) -> list[int]:
    """Return, for each exit, the multiply-adds up to and including it for one image (C, image_size, image_size).

    Args:
        network: a network with branches; it does not change.
        image_size: side of the image in pixels.
        exits: :func:`hsakd_pl.networks.exits.branch_exits` or :func:`hsakd_pl.networks.exits.ensemble_exits`.
    """
    network_copy, image = _counted_copy(network, image_size)
    with _counter(network_copy) as counter:
        return [counter.get_total_flops() // 2 for _ in exit_logits(network_copy, image, exits)]
