"""Auxiliary branches, made for any staged backbone by one rule, and the network that joins the two."""

from typing import NamedTuple

import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.layers import named
from hsakd_pl.ops import NUM_ROTATIONS


class NetworkOutput(NamedTuple):
    """``logits`` (B, N) of the class head and ``joint_logits``, L tensors (B, 4N), one a branch."""

    logits: Tensor
    joint_logits: tuple[Tensor, ...]


def make_branch(backbone: StagedBackbone, tap: int) -> nn.Sequential:
    """Branch that reads the feature map after stage ``tap`` (1..L): the stages that follow, built again, and a head.

    The last stage has none to follow: its branch repeats it with equal input and output channels and stride 1.
    """
    channels, last = backbone.channels, len(backbone.stages)
    if tap == last:
        stages = [backbone.make_stage(last, channels[last], stride=1)]
    else:
        later = range(tap + 1, last + 1)
        stages = [backbone.make_stage(stage, channels[stage - 1], backbone.strides[stage]) for stage in later]
    head = backbone.make_head(NUM_ROTATIONS * backbone.num_classes)
    branch = named(stages=nn.Sequential(*stages), head=head)
    for initialize in backbone.branch_init:
        branch.apply(initialize)
    return branch


class HSAKDNet(nn.Module):
    """A backbone with an auxiliary branch of 4N joint logits after each of its stages (Sec. 3.2 of the paper)."""

    def __init__(self, backbone: StagedBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleList(make_branch(backbone, tap) for tap in range(1, len(backbone.stages) + 1))

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    def forward(self, images: Tensor) -> NetworkOutput:
        taps = self.backbone.forward_features(images)
        joint_logits = tuple(branch(tap) for branch, tap in zip(self.branches, taps, strict=True))
        return NetworkOutput(self.backbone.head(taps[-1]), joint_logits)
