"""Attention transfer (AT; Zagoruyko and Komodakis, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.maps import Maps, paired, pooled_alike
from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import total


@full_precision
def attention_loss(student_maps: Maps, teacher_maps: Maps, power: float = 2.0) -> Tensor:
    """Sum over the stages the mean squared difference of attention: L maps (B, C, H, W) twice -> a scalar.

    Attention is the mean over channels of activations to a power, normalised over an image's positions; the larger of
    two maps is average-pooled. Raises UsageError for unequal numbers of maps.
    """
    pairs = (pooled_alike(*pair) for pair in paired(student_maps, teacher_maps))
    return total(F.mse_loss(_attention(ours, power), _attention(theirs, power)) for ours, theirs in pairs)


def _attention(features: Tensor, power: float) -> Tensor:
    return F.normalize(features.pow(power).mean(1).flatten(1))
