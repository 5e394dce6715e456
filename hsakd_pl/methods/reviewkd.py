"""Knowledge review (ReviewKD; Chen et al., CVPR 2021): each stage learns from the teacher's earlier ones too."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import total

PYRAMID = (4, 2, 1)  # sizes that maps are also compared at, each with half of the weight before it; as published


@full_precision
def hierarchical_context_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over the stages the mean squared error of maps (B, C, H, W) at their own and smaller sizes -> a scalar.

    The sizes' weights 1, 1/2, ... are divided by their sum (Sec. 3.4 of its paper).
    """
    return total(_context_loss(*pair) for pair in zip(student_maps, teacher_maps, strict=True))


def _context_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    sizes = [size for size in PYRAMID if size < ours.shape[2]]
    levels = [(ours, theirs), *((F.adaptive_avg_pool2d(ours, s), F.adaptive_avg_pool2d(theirs, s)) for s in sizes)]
    weighted = total(F.mse_loss(*level) / 2**depth for depth, level in enumerate(levels))
    return weighted / sum(2**-depth for depth in range(len(levels)))


class Fusion(nn.Module):
    """Fuses a student's map with what comes from the stages after it (attention based fusion, Sec. 3.3)."""

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
        """Give, at the teacher's size, the map to compare and, of ``mid_channels``, the one for the stage before."""
        fused = self.conv1(features)
        if self.att_conv is not None and later is not None:
            later = F.interpolate(later, fused.shape[2:])
            attention = self.att_conv(torch.cat([fused, later], 1))
            fused = fused * attention[:, :1] + later * attention[:, 1:]
        fused = F.interpolate(fused, size)
        return self.conv2(fused), fused


class Review(nn.Module):
    """Fusion blocks for all stages, shallow to deep, and for the embedding (as a map of one position) at the end."""

    def __init__(self, channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.stages = nn.ModuleList(
            Fusion(channels[stage], mid_channels, out_channels[stage], stage < last) for stage in range(last + 1)
        )

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        """Give the loss of maps (B, C, H, W), fused from deep to shallow."""
        reviewed, later = list[Tensor](), None
        for stage in reversed(range(len(self.stages))):
            compared, later = self.stages[stage](student_maps[stage], later, teacher_maps[stage].shape[2:])
            reviewed.insert(0, compared)
        return hierarchical_context_loss(reviewed, teacher_maps)
