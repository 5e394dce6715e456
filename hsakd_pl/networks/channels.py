"""Channels of the images that a network takes: 3 unless it is created for others, such as grey images or spectra."""

import inspect
from collections.abc import Callable
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.heads import output_layers
from hsakd_pl.networks.network import Network

ARGUMENTS = ("in_channels", "in_chans", "channels")  # usual names; the last one may also mean a width


def channels_argument(maker: Callable[..., Any], channels: int) -> dict[str, int]:
    """Return the keyword argument that tells a class or function the channels; none for 3, or if it has none."""
    parameters = inspect.signature(maker).parameters if channels != 3 else {}
    names = [name for name in ARGUMENTS if name in parameters]
    return {name: channels for name in names[:1]}


def set_channels(network: Network, channels: int, name: str) -> None:
    """Let a network, called ``name`` in errors, take images of a number of channels, unless this is 3.

    Raises UsageError for a network that answers for images of 3 channels, but not for these.
    """
    if channels in (3, network.in_channels):
        return
    if not output_layers(network, channels) and output_layers(network):
        raise UsageError(
            f"network {name} takes images of 3 channels, not of {channels}: give its class or function an argument "
            "in_channels for their number, or choose channels=3"
        )
    for part in (network, network.without_branches):
        part.in_channels = channels
