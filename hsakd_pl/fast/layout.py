"""Store weights channels_last, except those of networks that need contiguous maps."""

from collections.abc import Iterable

import pytorch_lightning as pl
import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.parameter import is_lazy

from hsakd_pl.fast import strided
from hsakd_pl.networks import Classifier, Network
from hsakd_pl.networks.copies import SavedBuffers, copied
from hsakd_pl.networks.heads import SIZES, all_logits
from hsakd_pl.networks.weights import describe

TRIED_SIZES = 3  # sides of images on which a network is tried where that of the data is not known
# Of logits, relative to the largest: a layout changes rounding alone
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def store_channels_last(module: pl.LightningModule, contiguous: Iterable[nn.Module] = ()) -> None:
    """Store all weights (out, in, H, W) of a module channels_last, except those of the ``contiguous`` networks."""
    kept = {id(tensor) for network in contiguous for tensor in (*network.parameters(), *network.buffers())}

    def convert(tensor: Tensor) -> Tensor:
        if is_lazy(tensor) or tensor.dim() != 4 or id(tensor) in kept:
            return tensor
        return tensor.to(memory_format=torch.channels_last)

    module._apply(convert)


def networks_kept_contiguous(networks: Iterable[Network], image_size: int | None) -> list[Network]:
    """Return those of the networks that fail, or answer otherwise, with weights in channels_last; log them.

    A copy of each network with code from outside the package is run once in each layout.

    Args:
        networks: networks to try.
        image_size: side of the images, if it is known.
    """
    kept = []
    for network in networks:
        with SavedBuffers(network):
            is_alike = not _is_from_outside(network) or _answers_alike(network, image_size)
        if not is_alike:
            kept.append(network)
            rank_zero_info(
                f"{describe(network)} fails or answers otherwise with weights in channels_last, so its weights stay "
                "contiguous, which is slower: x.flatten(1) in place of x.view(x.size(0), -1) is the usual remedy"
            )
    return kept


def _is_from_outside(network: Network) -> bool:
    """Return True for a network with a layer whose code is neither PyTorch's nor of this package."""
    kinds = {type(layer).__module__.partition(".")[0] for layer in network.modules()}
    return isinstance(network.without_branches, Classifier) or not kinds <= {"torch", "hsakd_pl"}


@isolate_rng(include_cuda=False)
def _answers_alike(network: Network, image_size: int | None) -> bool:
    """Return True if copies of a network in both layouts answer alike, in eval mode and, if they train, when training.

    They are tried on images of the given size, or of the first sizes that the network accepts.
    """
    tried = 0
    for size in (image_size, *SIZES):
        if size is None:
            continue
        try:
            expected = _answers(copied(network), size, training=False)
        except Exception:  # a network can raise anything for images of another size
            continue
        tried += 1
        if not _is_alike(network, size, expected):
            return False
        if size == image_size or tried == TRIED_SIZES:
            break
    return tried > 0


def _is_alike(network: Network, size: int, expected: list[Tensor]) -> bool:
    """Return True if a network in channels_last returns the expected logits, and trains unless it does in no layout."""
    try:
        found = _answers(_in_channels_last(network), size, training=False)
    except Exception:
        return False
    if not all(map(_are_close, found, expected)):
        return False
    try:
        with strided.Refused():
            _answers(_in_channels_last(network), size, training=True)
    except Exception:
        return not _trains(network, size)
    return True


def _trains(network: Network, size: int) -> bool:
    try:
        _answers(copied(network), size, training=True)
    except Exception:
        return False
    return True


def _in_channels_last(network: Network) -> Network:
    converted = copied(network)
    for tensor in (*converted.parameters(), *converted.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    strided.convert(converted)
    return converted


def _answers(network: Network, size: int, training: bool) -> list[Tensor]:
    """Return the logits of a network for two images; when training, differentiate them too."""
    weights = [weight for weight in network.parameters() if weight.is_floating_point()]
    dtype = weights[0].dtype if weights else torch.float32
    device = weights[0].device if weights else None
    torch.manual_seed(0)
    images = torch.randn(2, network.in_channels, size, size).to(device, dtype)
    with torch.set_grad_enabled(training):
        logits = all_logits(network.train(training).outputs(images))
        if training and any(tensor.requires_grad for tensor in logits):
            torch.stack([tensor.sum() for tensor in logits]).sum().backward()
    return logits


def _are_close(found: Tensor, expected: Tensor) -> bool:
    tolerance = TOLERANCES.get(expected.dtype, 0.0)
    largest = float(expected.detach().nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(found, expected, rtol=0, atol=tolerance * largest, equal_nan=True)
