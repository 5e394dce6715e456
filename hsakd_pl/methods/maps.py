"""Pair the feature maps of student and teacher and bring them to a common size."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.ops import pooled_alike as pooled_alike

Maps = Tensor | Sequence[Tensor]  # one map (B, C, H, W), or one per stage


def paired(student: Maps, teacher: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the pairs of maps of equal stages; raise UsageError if student and teacher differ in their number."""
    student_maps = [student] if isinstance(student, Tensor) else student
    teacher_maps = [teacher] if isinstance(teacher, Tensor) else teacher
    equal = len(student_maps) == len(teacher_maps)
    require(equal, "teacher's number of feature maps", len(teacher_maps), f"the student's, {len(student_maps)}")
    return zip(student_maps, teacher_maps, strict=True)
