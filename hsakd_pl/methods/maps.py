"""Pair the feature maps of student and teacher and bring them to a common size."""

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import require

Maps = Tensor | Sequence[Tensor]  # one map (B, C, H, W), or one per stage


def paired(student: Maps, teacher: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the pairs of maps of equal stages; raise UsageError if student and teacher differ in their number."""
    student_maps = [student] if isinstance(student, Tensor) else student
    teacher_maps = [teacher] if isinstance(teacher, Tensor) else teacher
    equal = len(student_maps) == len(teacher_maps)
    require(equal, "teacher's number of feature maps", len(teacher_maps), f"the student's, {len(student_maps)}")
    return zip(student_maps, teacher_maps, strict=True)


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps (B, C, H, W), average-pooled to the smaller height and width."""
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(teacher, (height, width))


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of the squares of a map (B, C, H, W), a scalar.

    Its gradient is channels_last, as the maps of a fit are. That of :func:`torch.nn.functional.mse_loss` is contiguous,
    with which the gradient of a norm takes four times as long on a CPU.
    """
    return difference.movedim(1, -1).square().mean()
