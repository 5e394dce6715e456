"""Represent the logits of an image by the largest ones, and one value for all others."""

import math

import torch
from torch import Tensor

from hsakd_pl.ops import full_precision


@full_precision
def largest_logits(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""Return the largest logits with a value r for the rest (B, count + 1), and the classes of the former (B, count).

    .. math:: r = \log \frac{1}{N - k} \sum_{c \notin A} e^{t_c}

    for the k largest logits t of N classes, which are the classes A. These logits, and r for each other class, have the
    softmax of t with equal probabilities outside of A. TinyViT (Wu et al., ECCV 2022; microsoft/Cream @ 00dbc84) keeps
    probabilities in this way; logits serve methods at all temperatures. Above a temperature of 1, the rest is more
    probable than it is by t. r is never above the kept logits, so that the order of the largest stays.

    Args:
        logits: logits t (B, N).
        count: number k of logits, below N.

    Examples:
        >>> values, classes = largest_logits(torch.tensor([[1.0, 4.0, 1.0, 3.0]]), 2)
        >>> values, classes
        (tensor([[4., 3., 1.]]), tensor([[1, 3]]))
    """
    values, classes = logits.topk(count, dim=1)
    others = logits.scatter(1, classes, -math.inf)
    rest = others.logsumexp(1, keepdim=True) - math.log(logits.shape[1] - count)
    return torch.cat([values, rest], dim=1), classes


def with_equal_rest(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return logits (B, num_classes) from what :func:`largest_logits` returns.

    Args:
        values: the largest logits and the value of all others (B, k + 1).
        classes: classes (B, k) of the former.
        num_classes: number of classes.

    Examples:
        >>> with_equal_rest(torch.tensor([[4.0, 3.0, 1.0]]), torch.tensor([[1, 3]]), 4)
        tensor([[1., 4., 1., 3.]])
    """
    rest = values[:, -1:].repeat(1, num_classes)
    return rest.scatter(1, classes, values[:, :-1])
