"""Variational information distillation (VID; Ahn et al., CVPR 2019)."""

import math
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.maps import pooled_alike
from hsakd_pl.methods.precision import full_precision

EPSILON = 1e-5  # least variance, as published


@full_precision
def vid_loss(mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    """Average the Gaussian's negative log-likelihood of the teacher's map, without its constant -> a scalar.

    ``mean`` and ``teacher_map`` (B, C, H, W), ``variance`` (C,) (Eq. 5 of its paper).
    """
    variance = variance[:, None, None]
    return ((mean - teacher_map).square() / variance + variance.log()).mean() / 2


class Variational(nn.Module):
    """Predicts a teacher's map from a student's: three 1x1 convolutions for the mean, a variance for each channel."""

    def __init__(self, channels: int, out_channels: int, variance: float = 5.0) -> None:
        super().__init__()
        widths = (channels, out_channels, out_channels, out_channels)
        first, second, third = (nn.Conv2d(*pair, 1, bias=False) for pair in pairwise(widths))
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((out_channels,), math.log(math.expm1(variance - EPSILON))))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the loss of two maps (B, C, H, W), the larger average-pooled."""
        ours, theirs = pooled_alike(student_map, teacher_map)
        return vid_loss(self.regressor(ours), theirs, F.softplus(self.log_scale) + EPSILON)
