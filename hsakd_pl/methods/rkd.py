"""Relational knowledge distillation (RKD; Park et al., CVPR 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Compare distances of pairs, in units of their mean, and cosines of the angles of triplets, by Huber's loss.

    Embeddings (B, D) and (B, D') -> a scalar (Eq. 5 to 8 of the paper).
    """
    distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
    return distance_weight * distance + angle_weight * F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _distances(rows: Tensor) -> Tensor:
    """Euclidean distances (B, B) over their mean between different rows."""
    squares = rows.square().sum(1)
    distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=1e-12).sqrt()  # as published
    distances = distances.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0.0)
    return distances / (distances.sum() / max(len(rows) * (len(rows) - 1), 1)).clamp(min=1e-12)


def _cosines(rows: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at the first of three rows."""
    directions = F.normalize(rows[None] - rows[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


class RKDModule(DistilledModule):
    """Minimises CE + ``rkd_weight`` times the differences among the embeddings of a device's images: of distances, by
    ``distance_weight``, and of angles, by ``angle_weight``.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        rkd_weight: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(network, teacher, {"loss_rkd": rkd_weight}, **rest)
        self.shapes("embedding")
        self.relations = distance_weight, angle_weight

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = rkd_loss(student.embedding, teacher.embedding, *self.relations)
        return super().terms(student, teacher, labels) | {"loss_rkd": loss}
