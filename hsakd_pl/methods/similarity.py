"""Similarity-preserving distillation (SP; Tung and Mori, ICCV 2019)."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import Maps, paired
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total


@full_precision
def similarity_loss(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Compare the images' similarities, by mean squared error: maps (B, C, H, W), summed over several -> a scalar.

    Similarities are the rows of the batch's Gram matrix (B, B), each normalised (Eq. 2 to 4 of the paper).
    """
    losses = []
    for student_map, teacher_map in paired(student_maps, teacher_maps):
        difference = _similarities(student_map) - _similarities(teacher_map)
        losses.append(difference.square().mean())
    return total(losses)


def _similarities(feature_map: Tensor) -> Tensor:
    rows = feature_map.flatten(1)
    return F.normalize(rows @ rows.T)


class SimilarityModule(DistilledModule):
    """Minimises CE + ``sp_weight`` times the difference of similarities in the last map, of a device's images."""

    def __init__(
        self, network: Net, teacher: Net, sp_weight: float = 3000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_sp=sp_weight)
        self.shapes("features")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = similarity_loss(student.features[-1], teacher.features[-1])
        return super().terms(student, teacher, labels) | {"loss_sp": loss}
