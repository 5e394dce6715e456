"""The method as pure functions: rotations, joint labels, class logits, the distillation loss (Sec. 3 of the paper).

A batch of B images becomes 4B rows, rotation by rotation: rows 0..B-1 are the images as they are, the next B rows
the images turned by 90 degrees, and so on. So ``rows[:B]`` is the unrotated part, without a copy.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError

NUM_ROTATIONS = 4  # M = 4: 0, 90, 180 and 270 degrees, Sec. 3.1


def rotate(images: Tensor) -> Tensor:
    """Turn every image counter-clockwise by 0, 90, 180 and 270 degrees.

    ``images`` (B, C, S, S) -> (4B, C, S, S), rotation by rotation, in channels_last memory. Raises UsageError if the
    images are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise UsageError(f"rotation by 90 degrees needs square images, got {height} x {width}: crop or resize them")
    size = (NUM_ROTATIONS * len(images), *images.shape[1:])
    rows = torch.empty(size, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    for rotation in range(NUM_ROTATIONS):
        part = slice(rotation * len(images), (rotation + 1) * len(images))
        rows[part] = torch.rot90(images, rotation, (2, 3))
    return rows


def joint_labels(labels: Tensor) -> Tensor:
    """Self-supervised augmented labels ``4 * y + r`` of the rows of :func:`rotate`: (B,) in N -> (4B,) in 4N."""
    return torch.cat([NUM_ROTATIONS * labels + rotation for rotation in range(NUM_ROTATIONS)])


def class_logits(joint_logits: Tensor) -> Tensor:
    """Sum joint logits over the four rotations of a class: (M, 4N) -> (M, N)."""
    return joint_logits.unflatten(1, (-1, NUM_ROTATIONS)).sum(-1)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum of one or more scalars."""
    return torch.stack(list(terms)).sum()


def joint_cross_entropy(joint_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy with the joint labels, summed over the branches: L tensors (4B, 4N), ``labels`` (B,) in N.

    Eq. 3 of the paper; all branches at once, which takes fewer kernels than one after the other.
    """
    branches = len(joint_logits)
    return branches * F.cross_entropy(torch.cat(tuple(joint_logits)), joint_labels(labels).repeat(branches))


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Temperature-scaled ``KL(student || teacher)`` averaged over the rows, times ``temperature ** 2``.

    Both (M, K), or (L, M, K) for the sum of L such losses; no gradient reaches ``teacher_logits``. Eq. 5 and 6 of the
    paper, after Hinton et al. 2015.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=-1),
        F.softmax(teacher_logits.detach() / temperature, dim=-1),
        reduction="sum",
    )
    return temperature**2 * divergence / student_logits.shape[-2]
