"""Correlation congruence (CC; Peng et al., ICCV 2019), in the form of the field's tables."""

from torch import Tensor

from hsakd_pl.methods.precision import full_precision


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Average over neighbours in the batch the product of their absolute differences, summed over D.

    Linear embeddings, twice (B, D) -> a scalar; the code behind the published tables computes this.
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)
