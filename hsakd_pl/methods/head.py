"""Find the linear layer that ends a network, for methods that use the teacher's head."""

import torch.nn as nn

from hsakd_pl.errors import UsageError
from hsakd_pl.networks import Network, StagedBackbone
from hsakd_pl.networks.weights import describe


def last_linear(network: Network) -> nn.Linear:
    """Return the layer that maps embeddings (B, D) to class logits (B, N); raise UsageError if it is not linear."""
    layer = network.head[-1] if isinstance(network, StagedBackbone) else None
    if not isinstance(layer, nn.Linear):
        raise UsageError(
            f"teacher: {describe(network)} has no linear head on an embedding, which the method needs: choose a staged "
            "network, or a method that only needs logits"
        )
    return layer
