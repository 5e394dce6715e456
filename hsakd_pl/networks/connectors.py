"""Parts between a student and its teacher, which training alone needs: what makes their outputs comparable."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.networks.network import Network, NetworkOutput

Maps = Tensor | Sequence[Tensor]  # one map (B, C, H, W), or one a stage
LEAST_VARIANCE = 1e-5  # of VID, as published


def paired(student: Maps, teacher: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair two maps, or the maps of equal stages; raises UsageError where one network has more of them."""
    ours, theirs = ([maps] if isinstance(maps, Tensor) else maps for maps in (student, teacher))
    require(len(ours) == len(theirs), "teacher's number of feature maps", len(theirs), f"the student's, {len(ours)}")
    return zip(ours, theirs, strict=True)


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to the smaller one's height and width."""
    size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    ours, theirs = (F.adaptive_avg_pool2d(each, (size[0], size[1])) for each in (student, teacher))
    return ours, theirs


def make_regressor(student: Tensor, teacher: Tensor) -> nn.Sequential:
    """Build FitNet's (Romero et al., ICLR 2015) from a map (B, C, H, W) to another's shape: convolution, norm, ReLU.

    At twice the size its stride is 2, at half of it the convolution is transposed, at any larger size it is as wide as
    needed. Raises UsageError for a student's map that is smaller in another way.
    """
    channels, sides = (student.shape[1], teacher.shape[1]), [*zip(student.shape[2:], teacher.shape[2:], strict=True)]
    convolution: nn.Module
    if all(ours == 2 * theirs for ours, theirs in sides):
        convolution = nn.Conv2d(*channels, 3, stride=2, padding=1)
    elif all(2 * ours == theirs for ours, theirs in sides):
        convolution = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    elif all(ours >= theirs for ours, theirs in sides):
        convolution = nn.Conv2d(*channels, tuple(1 + ours - theirs for ours, theirs in sides))  # type: ignore
    else:
        found = " and ".join(str(tuple(each.shape[2:])) for each in (student, teacher))
        raise UsageError(
            f"stage: no regressor connects maps of {found}, the student's and the teacher's: choose another"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels[1]), nn.ReLU())


class Variational(nn.Module):
    """VID's (Ahn et al., CVPR 2019) guess of a teacher's map: a mean by three 1x1 convolutions, channels' variances."""

    def __init__(self, channels: int, out_channels: int, variance: float = 5.0) -> None:
        super().__init__()
        require(LEAST_VARIANCE < variance < math.inf, "variance", variance, f"above {LEAST_VARIANCE}")
        widths = pairwise((channels, out_channels, out_channels, out_channels))
        first, second, third = (nn.Conv2d(*pair, 1, bias=False) for pair in widths)
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((out_channels,), math.log(math.expm1(variance - LEAST_VARIANCE))))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give mean and truth, (B, out_channels, H, W) at the smaller map's size, and variances (out_channels,)."""
        ours, theirs = pooled_alike(student, teacher)
        return self.regressor(ours), theirs, F.softplus(self.log_scale) + LEAST_VARIANCE


class Fusion(nn.Module):
    """ReviewKD's (Chen et al., CVPR 2021) fusion, by attention, of a map with what comes from the stages after it."""

    def __init__(self, channels: int, mid_channels: int, out_channels: int, fuse: bool) -> None:
        super().__init__()
        first = nn.Conv2d(channels, mid_channels, 1, bias=False)
        second = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(first, nn.BatchNorm2d(mid_channels))
        self.conv2 = nn.Sequential(second, nn.BatchNorm2d(out_channels))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None
        for convolution in (first, second):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, features: Tensor, later: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Give, at ``size``, the map to compare and, of ``mid_channels``, the one for the stage before."""
        fused = self.conv1(features)
        if self.att_conv is not None and later is not None:
            later = F.interpolate(later, fused.shape[2:])
            attention = self.att_conv(torch.cat([fused, later], 1))
            fused = fused * attention[:, :1] + later * attention[:, 1:]
        fused = F.interpolate(fused, size)
        return self.conv2(fused), fused


class Review(nn.ModuleList):
    """Fusions of maps, shallow to deep: ``channels`` of the student's, ``out_channels`` of the teacher's."""

    def __init__(self, channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        last = len(channels) - 1
        pairs = enumerate(zip(channels, out_channels, strict=True))
        super().__init__(Fusion(ours, mid_channels, theirs, stage < last) for stage, (ours, theirs) in pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Give what to compare with each of the teacher's maps (B, C, H, W), of their shapes."""
        reviewed: list[Tensor] = []
        later = None
        for fusion, ours, theirs in reversed([*zip(self, student, teacher, strict=True)]):
            compared, later = fusion(ours, later, theirs.shape[2:])
            reviewed.insert(0, compared)
        return reviewed


def make_projection(width: int) -> nn.Sequential:
    """Build SSKD's (Xu et al., ECCV 2020) projection head of two linear layers: (B, width) -> (B, width)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class ProjectedTeacher(Network):
    """A teacher, which never learns, whose embedding (B, width) passes a projection head, which may."""

    def __init__(self, teacher: Network, width: int) -> None:
        super().__init__(teacher.num_classes, teacher.transforms)
        self.teacher = teacher
        self.projection = make_projection(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)

    def outputs(self, images: Tensor) -> NetworkOutput:
        with torch.no_grad():
            output = self.teacher.outputs(images)
        return output._replace(embedding=self.projection(output.embedding))
