"""Build auxiliary branches for any staged backbone, and the network that joins backbone and branches."""

import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.layers import named
from hsakd_pl.networks.network import Network, NetworkOutput
from hsakd_pl.ops import ROTATIONS, Transforms


def make_branch(backbone: StagedBackbone, tap: int, num_outputs: int) -> nn.Sequential:
    """Build the branch that reads the feature map after stage ``tap`` (1..L).

    It repeats the stages that follow and ends in a head of ``num_outputs``. The branch of the last stage repeats that
    stage with equal input and output channels and stride 1.
    """
    maker = backbone.branch_maker()
    channels = backbone.channels
    last = len(backbone.stages)
    if tap == last:
        stages = [maker.make_stage(last, channels[last], 1)]
    else:
        later = range(tap + 1, last + 1)
        stages = [maker.make_stage(stage, channels[stage - 1], backbone.strides[stage]) for stage in later]
    branch = named(stages=nn.Sequential(*stages), head=maker.make_head(num_outputs))
    for initialize in backbone.branch_init:
        branch.apply(initialize)
    return branch


class HSAKDNet(Network):
    """A backbone with an auxiliary branch of M * N joint logits after each stage (Sec. 3.2 of the paper).

    Args:
        backbone: backbone of N classes.
        transforms: the M transformations whose joint labels the branches learn.

    Examples:
        >>> network = create_network("resnet20", num_classes=10)
        >>> output = network(torch.zeros(2, 3, 32, 32))
        >>> output.logits.shape
        torch.Size([2, 10])
        >>> [logits.shape for logits in output.joint_logits]
        [torch.Size([2, 40]), torch.Size([2, 40]), torch.Size([2, 40])]
    """

    def __init__(self, backbone: StagedBackbone, transforms: Transforms = ROTATIONS) -> None:
        super().__init__(backbone.num_classes, transforms)
        backbone.transforms = transforms
        self.in_channels = backbone.in_channels
        self.backbone = backbone
        self.name = backbone.name
        taps = range(1, len(backbone.stages) + 1)
        self.branches = nn.ModuleList(make_branch(backbone, tap, self.num_joint_classes) for tap in taps)

    @property
    def without_branches(self) -> Network:
        return self.backbone

    def check_image_size(self, height: int, width: int) -> None:
        self.backbone.check_image_size(height, width)

    def forward(self, images: Tensor) -> NetworkOutput:
        output = self.backbone.outputs(images)
        joint_logits = [branch(output.features[stage]) for stage, branch in enumerate(self.branches)]
        return NetworkOutput(output.logits, joint_logits, output.features, output.embedding, output.pooled_map)

    def outputs(self, images: Tensor) -> NetworkOutput:
        return self(images)
