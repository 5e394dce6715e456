"""Count the multiply-adds of networks."""

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.exits import Exit, exit_logits
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network


@torch.no_grad()
def multiply_adds(network: Network, image_size: int) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image (3, image_size, image_size).

    They are counted on a copy in float32 on the CPU; the network does not change.
    """
    network_copy = copied(network).cpu().float().eval()
    image = torch.zeros(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        network_copy(image)
    return counter.get_total_flops() // 2  # a multiply-add is two floating-point operations


@torch.no_grad()
def multiply_adds_until(network: HSAKDNet, image_size: int, exits: Callable[[HSAKDNet], Sequence[Exit]]) -> list[int]:
    """Return, for each exit, the multiply-adds up to and including it for one image (3, image_size, image_size).

    Args:
        network: a network with branches; it does not change.
        image_size: side of the image in pixels.
        exits: :func:`hsakd_pl.networks.exits.branch_exits` or :func:`hsakd_pl.networks.exits.ensemble_exits`.
    """
    network_copy = copied(network).cpu().float().eval()
    image = torch.zeros(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        return [counter.get_total_flops() // 2 for _ in exit_logits(network_copy, image, exits)]
