"""Kullback-Leibler divergences of each row, also among a part of the classes and of one class against the others."""

import torch
from torch import Tensor


def row_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) over the last dimension, without gradient to the teacher.

    Args:
        student_logits: logits (..., N).
        teacher_logits: logits (..., N).

    Examples:
        >>> row_divergence(torch.zeros(2, 10), torch.ones(2, 10))
        tensor([0., 0.])
    """
    student_log = student_logits.log_softmax(-1)
    teacher_log = teacher_logits.detach().log_softmax(-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def log_softmax_among(logits: Tensor, members: Tensor) -> Tensor:
    """Return the logarithm of the softmax of logits (..., N) over some classes alone, and 0 at all others.

    Args:
        logits: logits (..., N).
        members: mask (..., N) of the classes; a row without any gives zeros.

    Examples:
        >>> log_softmax_among(torch.zeros(1, 3), torch.tensor([[True, True, False]]))
        tensor([[-0.6931, -0.6931,  0.0000]])
    """
    others = members.any(-1, keepdim=True) & ~members  # none in a row without members, whose softmax would be NaN
    within = logits.masked_fill(others, -torch.inf).log_softmax(-1)
    return within.masked_fill(~members, 0.0)


def row_divergence_among(student_logits: Tensor, teacher_logits: Tensor, members: Tensor) -> Tensor:
    """Return :func:`row_divergence` among the classes of a mask (..., N); 0 for a row without any.

    Examples:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> row_divergence_among(logits, logits + 1, torch.tensor([[True, True, False]])).abs() < 1e-6
        tensor([True])
    """
    student_log = log_softmax_among(student_logits, members)
    teacher_log = log_softmax_among(teacher_logits.detach(), members)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def against_others(logits: Tensor, classes: Tensor) -> Tensor:
    """Return logits (..., 2) of one class, and of all others as a second one.

    Args:
        logits: logits (..., N).
        classes: indices (...) of the classes.

    Examples:
        >>> against_others(torch.zeros(1, 3), torch.tensor([0])).softmax(-1)
        tensor([[0.3333, 0.6667]])
    """
    index = classes.unsqueeze(-1)
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, index), others], -1)


def all_but(classes: Tensor, num_classes: int) -> Tensor:
    """Return a mask (..., N) of all classes but one per row.

    Examples:
        >>> all_but(torch.tensor([1]), 3)
        tensor([[ True, False,  True]])
    """
    return torch.arange(num_classes, device=classes.device) != classes.unsqueeze(-1)
