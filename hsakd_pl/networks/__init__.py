"""Networks: backbones in stages, auxiliary branches, and a registry of names."""

from hsakd_pl.networks import mobilenetv2, resnet, shufflenet, vgg, wrn  # noqa: F401  (importing registers the names)
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import Classifier, Network, NetworkOutput, as_network
from hsakd_pl.networks.registry import create_network, list_networks, register_network

__all__ = [
    "Classifier",
    "HSAKDNet",
    "Network",
    "NetworkOutput",
    "StagedBackbone",
    "as_network",
    "create_network",
    "list_networks",
    "register_network",
]
