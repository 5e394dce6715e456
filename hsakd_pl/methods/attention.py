"""Attention transfer (AT; Zagoruyko and Komodakis, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import Maps, paired, pooled_alike
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total


@full_precision
def attention_loss(student_maps: Maps, teacher_maps: Maps, power: float = 2.0) -> Tensor:
    """Sum over the stages the mean squared difference of attention: L maps (B, C, H, W) twice -> a scalar.

    Attention is the mean over channels of activations to a power, normalised over an image's positions; the larger of
    two maps is average-pooled. Raises UsageError for unequal numbers of maps.
    """
    losses = []
    for student_map, teacher_map in paired(student_maps, teacher_maps):
        student_pooled, teacher_pooled = pooled_alike(student_map, teacher_map)
        difference = _attention(student_pooled, power) - _attention(teacher_pooled, power)
        losses.append(difference.square().mean())
    return total(losses)


def _attention(feature_map: Tensor, power: float) -> Tensor:
    return F.normalize(feature_map.pow(power).mean(1).flatten(1))


class AttentionModule(DistilledModule):
    """Minimises CE + ``at_weight`` times the difference of attention after all stages."""

    def __init__(
        self, network: Net, teacher: Net, at_weight: float = 1000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_at=at_weight)
        self.shapes("features")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = attention_loss(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_at": loss}
