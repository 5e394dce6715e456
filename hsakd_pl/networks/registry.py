"""Networks by name."""

from collections.abc import Callable
from difflib import get_close_matches

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Network
from hsakd_pl.ops import ROTATIONS, Transforms

BackboneMaker = Callable[[int], StagedBackbone]
_REGISTRY: dict[str, BackboneMaker] = {}


def register_network(name: str) -> Callable[[BackboneMaker], BackboneMaker]:
    """Decorator that enters a backbone class or function, called with the number of classes, under ``name``."""

    def register(make_backbone: BackboneMaker) -> BackboneMaker:
        if name in _REGISTRY:
            raise UsageError(f"register_network: the name {name!r} is taken, choose another")
        _REGISTRY[name] = make_backbone
        return make_backbone

    return register


def list_networks() -> list[str]:
    """Names that :func:`create_network` knows, sorted."""
    return sorted(_REGISTRY)


def create_network(
    name: str, num_classes: int = 100, branches: bool = True, transforms: Transforms = ROTATIONS
) -> Network:
    """Build a network with fresh weights.

    With ``branches``, one after each stage, it returns a :class:`NetworkOutput` for images (B, 3, S, S); without,
    logits (B, N) alone. ``transforms``: those whose joint labels the branches learn. Raises UsageError for an unknown
    name.
    """
    if name not in _REGISTRY:
        close = get_close_matches(name, _REGISTRY, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(f"unknown network {name!r}: {hint}known are {', '.join(list_networks())}")
    backbone = _REGISTRY[name](num_classes)
    backbone.name, backbone.transforms = name, transforms
    return HSAKDNet(backbone, transforms) if branches else backbone
