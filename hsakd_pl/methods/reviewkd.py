"""Knowledge review (ReviewKD; Chen et al., CVPR 2021): each stage learns from the teacher's earlier ones too."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import paired
from hsakd_pl.methods.options import KDOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total

POOLED_SIZES = (4, 2, 1)  # pixels a side of the pooled levels, as in the published code
MOST_CHANNELS = 512  # of the fused maps, as in the published code


@full_precision
def hierarchical_context_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over the stages the mean squared error of maps (B, C, H, W) at their own and smaller sizes -> a scalar.

    The sizes' weights 1, 1/2, ... are divided by their sum (Sec. 3.4 of its paper).
    """
    pairs = zip(student_maps, teacher_maps, strict=True)
    return total(_context_loss(student_map, teacher_map) for student_map, teacher_map in pairs)


def _context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    sizes = [size for size in POOLED_SIZES if size < student_map.shape[2]]
    levels = [(student_map, teacher_map)]
    levels += [(F.adaptive_avg_pool2d(student_map, size), F.adaptive_avg_pool2d(teacher_map, size)) for size in sizes]
    weights = [0.5**depth for depth in range(len(levels))]
    losses = [weight * F.mse_loss(*level) for weight, level in zip(weights, levels, strict=True)]
    return total(losses) / sum(weights)


class Fusion(nn.Module):
    """Fusion, by attention, of a map with what comes from the stages after it."""

    def __init__(self, channels: int, mid_channels: int, out_channels: int, fuse: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(channels, mid_channels, 1, bias=False)
        expand = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels))
        self.conv2 = nn.Sequential(expand, nn.BatchNorm2d(out_channels))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feature_map: Tensor, later: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Give, at ``size``, the map to compare and, of ``mid_channels``, the one for the stage before."""
        fused = self.conv1(feature_map)
        if self.att_conv is not None and later is not None:
            later = F.interpolate(later, fused.shape[2:])
            attention = self.att_conv(torch.cat([fused, later], 1))
            fused = fused * attention[:, :1] + later * attention[:, 1:]
        fused = F.interpolate(fused, size)
        return self.conv2(fused), fused


class Review(nn.ModuleList):
    """Fusions of maps, shallow to deep: ``channels`` of the student's, ``out_channels`` of the teacher's."""

    def __init__(self, channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        super().__init__()
        deepest = len(channels) - 1
        for stage, (student_channels, teacher_channels) in enumerate(zip(channels, out_channels, strict=True)):
            self.append(Fusion(student_channels, mid_channels, teacher_channels, fuse=stage < deepest))

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[Tensor]:
        """Give what to compare with each of the teacher's maps (B, C, H, W), of their shapes."""
        reviewed: list[Tensor] = []
        later = None
        for fusion, student_map, teacher_map in reversed(list(zip(self, student_maps, teacher_maps, strict=True))):
            compared, later = fusion(student_map, later, teacher_map.shape[2:])
            reviewed.insert(0, compared)
        return reviewed


class ReviewKDModule(DistilledModule):
    """Minimises CE + ``reviewkd_weight`` times the error of fused maps, a weight which grows over the first epochs.

    The published code takes maps before their last ReLU, this one the maps that networks show.

    Args:
        mid_channels: of the fused maps; by default the student's embedding, at most 512.
        reviewkd_weight: 5, 8, 0.6 or 1 in the field's tables, by the pair of networks.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        mid_channels: int | None = None,
        reviewkd_weight: float = 5.0,
        weight_warmup_epochs: int = 20,
        **options: Unpack[KDOptions],
    ) -> None:
        super().__init__(network, teacher, weight_warmup_epochs=weight_warmup_epochs, **options)
        self.set_loss_weights(loss_reviewkd=reviewkd_weight)
        student_shapes, teacher_shapes = self.shapes("features", "embedding")
        student_channels = []
        teacher_channels = []
        for student_map, teacher_map in paired(student_shapes.maps(), teacher_shapes.maps()):
            student_channels.append(student_map.shape[1])
            teacher_channels.append(teacher_map.shape[1])
        mid_channels = mid_channels or min(MOST_CHANNELS, student_shapes.width)
        self.review = Review(student_channels, teacher_channels, mid_channels)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        reviewed = self.review(student.maps(), teacher.maps())
        loss = hierarchical_context_loss(reviewed, teacher.maps())
        return super().terms(student, teacher, labels) | {"loss_reviewkd": loss}
