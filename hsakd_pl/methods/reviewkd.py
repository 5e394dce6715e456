"""Knowledge review (ReviewKD; Chen et al., CVPR 2021): match the teacher's maps by maps fused from deep to shallow."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import mean_square, paired
from hsakd_pl.methods.options import KDOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total
from hsakd_pl.signatures import Unpack

POOLED_SIZES = (4, 2, 1)  # height and width of the pooled levels, as in the published code
MOST_CHANNELS = 512  # limit for the fused maps, as in the published code


@full_precision
def hierarchical_context_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    r"""Return a mean squared error at several sizes, summed over the stages, a scalar (Sec. 3.4 of the paper).

    .. math:: \sum_l \frac{\sum_k 2^{-k} \, \overline{\left( s_{l,k} - t_{l,k} \right)^2}}{\sum_k 2^{-k}}

    Level k = 0 is the map itself, the next ones are pooled to all of 4 x 4, 2 x 2 and 1 x 1 that are smaller.

    Source: Chen et al., CVPR 2021.

    Args:
        student_maps: L maps (B, C, H, W), fused to the shapes of the teacher's.
        teacher_maps: L maps of the teacher.

    Returns:
        Loss, a scalar.

    Examples:
        >>> hierarchical_context_loss([torch.ones(2, 8, 8, 8)], [torch.zeros(2, 8, 8, 8)])
        tensor(1.)
    """
    pairs = zip(student_maps, teacher_maps, strict=True)
    return total(_context_loss(student_map, teacher_map) for student_map, teacher_map in pairs)


def _context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the weighted mean squared error of two maps (B, C, H, W) at several sizes, a scalar.

    The difference of the pooled maps is the pooled difference, and in maps that are divided evenly, each size can be
    pooled from the one before.
    """
    difference = student_map - teacher_map
    nested = all(side % POOLED_SIZES[0] == 0 for side in difference.shape[2:])
    levels = [difference]
    for size in POOLED_SIZES:
        if size < student_map.shape[2]:
            levels.append(F.adaptive_avg_pool2d(levels[-1] if nested else difference, size))
    weights = [0.5**depth for depth in range(len(levels))]
    losses = [weight * mean_square(level) for weight, level in zip(weights, levels, strict=True)]
    return total(losses) / sum(weights)


class Fusion(nn.Module):
    """Fuse a feature map, by attention, with the fused map of the next stage.

    Args:
        channels: channels of the student's map.
        mid_channels: channels of the fused map.
        out_channels: channels of the teacher's map.
        fuse: fuse with a later map; False for the last stage.
    """

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
        """Return, at ``size``, the map to compare with the teacher's and the fused map for the previous stage."""
        fused = self.conv1(feature_map)
        if self.att_conv is not None and later is not None:
            attention = _attention(self.att_conv, fused, later)
            later = _resized(later, fused.shape[2:])
            fused = fused * attention[:, :1] + later * attention[:, 1:]
        fused = _resized(fused, size)
        return self.conv2(fused), fused


def _attention(layers: nn.Sequential, feature_map: Tensor, later: Tensor) -> Tensor:
    """Return ``layers`` (B, 2, H, W) of a map (B, C, H, W) and, enlarged, the fused map of the next stage.

    The first layer, a 1 x 1 convolution, is computed as two matrix products, that of the later map at its own size.
    """
    convolution, sigmoid = cast(tuple[nn.Conv2d, nn.Module], tuple(layers))
    of_map, of_later = convolution.weight.flatten(1).split(feature_map.shape[1], dim=1)
    scores = _pixelwise(feature_map, of_map, convolution.bias)
    attention: Tensor = sigmoid(scores + _resized(_pixelwise(later, of_later), feature_map.shape[2:]))
    return attention


def _resized(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map (B, C, H, W) at another height and width, by its nearest pixels."""
    return feature_map if feature_map.shape[2:] == torch.Size(size) else F.interpolate(feature_map, size)


def _pixelwise(feature_map: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a linear layer of each pixel's channels: (B, C, H, W) and (C', C) -> (B, C', H, W)."""
    return F.linear(feature_map.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class Review(nn.ModuleList):
    """Fuse the student's maps from deep to shallow.

    Args:
        channels: channels of the student's maps, shallow to deep.
        out_channels: channels of the teacher's maps.
        mid_channels: channels of the fused maps.
    """

    def __init__(self, channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        super().__init__()
        deepest = len(channels) - 1
        for stage, (student_channels, teacher_channels) in enumerate(zip(channels, out_channels, strict=True)):
            self.append(Fusion(student_channels, mid_channels, teacher_channels, fuse=stage < deepest))

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one map per stage, of the shape (B, C, H, W) of the teacher's."""
        reviewed: list[Tensor] = []
        later = None
        for fusion, student_map, teacher_map in reversed(list(zip(self, student_maps, teacher_maps, strict=True))):
            compared, later = fusion(student_map, later, teacher_map.shape[2:])
            reviewed.insert(0, compared)
        return reviewed


class ReviewKDModule(DistilledModule):
    """Minimise CE + ``reviewkd_weight`` * :func:`hierarchical_context_loss` of fused maps.

    The published code takes the maps before their last ReLU, this module those of ``features``.

    Source: Chen et al., CVPR 2021.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        mid_channels: channels of the fused maps; the width of the student's embedding, at most 512, by default.
        reviewkd_weight: weight of the loss; 5, 8, 0.6 or 1 in the paper, depending on the networks.
        weight_warmup_epochs: epochs over which ``reviewkd_weight`` grows linearly; 20 in the paper.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = ReviewKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_reviewkd']
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
