"""Similarity-preserving distillation (SP; Tung and Mori, ICCV 2019)."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.maps import Maps, paired
from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import total


@full_precision
def similarity_loss(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Compare the images' similarities, by mean squared error: maps (B, C, H, W), summed over several -> a scalar.

    Similarities are the rows of the batch's Gram matrix (B, B), each normalised (Eq. 2 to 4 of its paper).
    """
    return total(
        F.mse_loss(_similarity(ours), _similarity(theirs)) for ours, theirs in paired(student_maps, teacher_maps)
    )


def _similarity(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T)
