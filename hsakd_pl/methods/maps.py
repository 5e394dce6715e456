"""Feature maps of a student and a teacher, brought together."""

from collections.abc import Iterator, Sequence

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError

Maps = Tensor | Sequence[Tensor]  # one map (B, C, H, W), or one a stage


def paired(student: Maps, teacher: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair two maps, or the maps of equal stages; raises UsageError where one network has more of them."""
    ours, theirs = ([maps] if isinstance(maps, Tensor) else maps for maps in (student, teacher))
    if len(ours) != len(theirs):
        raise UsageError(
            f"the student has feature maps after {len(ours)} stages, the teacher after {len(theirs)}: choose networks "
            "with as many stages, or a method that compares logits or embeddings"
        )
    return zip(ours, theirs, strict=True)


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to the smaller one's height and width."""
    height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
    pool = nn.AdaptiveAvgPool2d((height, width))
    ours, theirs = (each if each.shape[2:] == (height, width) else pool(each) for each in (student, teacher))
    return ours, theirs
