"""Attention transfer (AT; Zagoruyko and Komodakis, ICLR 2017)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import Maps, paired, pooled_alike
from hsakd_pl.ops import full_precision, total


@full_precision
def attention_loss(student_maps: Maps, teacher_maps: Maps, power: float = 2.0) -> Tensor:
    """Sum over the stages the mean squared difference of attention: L maps (B, C, H, W) twice -> a scalar.

    Attention is the mean over channels of activations to a power, normalised over an image's positions; the larger of
    two maps is average-pooled. Raises UsageError for unequal numbers of maps.
    """
    pairs = (pooled_alike(*pair) for pair in paired(student_maps, teacher_maps))
    attention = ([F.normalize(each.pow(power).mean(1).flatten(1)) for each in pair] for pair in pairs)
    return total((ours - theirs).square().mean() for ours, theirs in attention)


class AttentionModule(DistilledModule):
    """Minimises CE + ``at_weight`` times the difference of attention after all stages."""

    def __init__(self, network: Net, teacher: Net, at_weight: float = 1000.0, **rest: Any) -> None:
        super().__init__(network, teacher, {"loss_at": at_weight}, **rest)
        self.shapes("features")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        return super().terms(student, teacher, labels) | {"loss_at": attention_loss(student.features, teacher.features)}
