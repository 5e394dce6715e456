"""Decoupled knowledge distillation (Zhao et al., CVPR 2022): the target class, and the others among themselves."""

import torch
from torch import Tensor

from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import kd_loss

ABSENT = -1000.0  # a logit whose probability is exactly 0, while its logarithm stays finite; as published


@full_precision
def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:  # fmt: skip
    """Weigh two KD losses: ``alpha`` target against all others, ``beta`` among the others (Eq. 7 of its paper).

    Logits twice (B, N), labels (B,) -> a scalar, times ``temperature ** 2`` like :func:`kd_loss`.
    """
    target, both = labels[:, None], (student_logits / temperature, teacher_logits / temperature)
    ours, theirs = (_target_or_other(logits.log_softmax(1), target) for logits in both)
    our_others, their_others = (logits.scatter(1, target, ABSENT) for logits in both)
    decoupled = alpha * kd_loss(ours, theirs, 1.0) + beta * kd_loss(our_others, their_others, 1.0)
    return temperature**2 * decoupled


def _target_or_other(log_probability: Tensor, target: Tensor) -> Tensor:
    """Logarithms (B, 2) of the probabilities of the target and of all other classes."""
    others = log_probability.scatter(1, target, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_probability.gather(1, target), others], 1)
