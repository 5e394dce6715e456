"""Networks: backbones in stages, auxiliary branches, and a registry of names."""

from hsakd_pl.networks import mobilenetv2, resnet, shufflenet, vgg, wrn  # noqa: F401  (importing registers the names)
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.hsakd import HSAKDNet, NetworkOutput
from hsakd_pl.networks.registry import create_network, list_networks, register_network

__all__ = ["HSAKDNet", "NetworkOutput", "StagedBackbone", "create_network", "list_networks", "register_network"]
