"""FitNet (Romero et al., ICLR 2015): a hint for the student's map in the middle."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.methods.precision import full_precision


@full_precision
def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared error of two maps (B, C, H, W), the student's after its regressor -> a scalar."""
    return F.mse_loss(student_map, teacher_map)


def make_regressor(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Sequential:
    """Build what brings a student's map to a teacher's shape, each (C, H, W): a convolution, a norm, a ReLU.

    At twice the size its stride is 2, at half of it the convolution is transposed, at any larger size it is as wide as
    needed. Raises UsageError for a student's map that is smaller in another way.
    """
    (channels, height, width), (out_channels, out_height, out_width) = student, teacher
    convolution: nn.Module
    if (height, width) == (2 * out_height, 2 * out_width):
        convolution = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
    elif (2 * height, 2 * width) == (out_height, out_width):
        convolution = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
    elif height >= out_height and width >= out_width:
        convolution = nn.Conv2d(channels, out_channels, (1 + height - out_height, 1 + width - out_width))
    else:
        raise UsageError(
            f"the student's map is {height} x {width}, the teacher's {out_height} x {out_width}: FitNet needs one that "
            "is as large, larger or half as large; choose another stage"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
