"""Relational knowledge distillation (RKD; Park et al., CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision

LEAST_DISTANCE = 1e-12  # of the squares before the root, and of the mean distance, as in the published code


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Compare distances of pairs, in units of their mean, and cosines of the angles of triplets, by Huber's loss.

    Embeddings (B, D) and (B, D') -> a scalar (Eq. 5 to 8 of the paper).
    """
    distance_loss = F.smooth_l1_loss(_distances(student), _distances(teacher))
    angle_loss = F.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return distance_weight * distance_loss + angle_weight * angle_loss


def _distances(embedding: Tensor) -> Tensor:
    """Euclidean distances (B, B) over their mean between different rows."""
    images = len(embedding)
    squares = embedding.square().sum(1)
    squared_distances = squares[:, None] + squares - 2 * embedding @ embedding.T
    distances = squared_distances.clamp(min=LEAST_DISTANCE).sqrt()
    distances = distances.masked_fill(torch.eye(images, dtype=torch.bool, device=embedding.device), 0.0)
    mean = distances.sum() / max(images * (images - 1), 1)
    return distances / mean.clamp(min=LEAST_DISTANCE)


def _cosines(embedding: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at the first of three rows."""
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
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
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_rkd=rkd_weight)
        self.shapes("embedding")
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = rkd_loss(student.embedding, teacher.embedding, self.distance_weight, self.angle_weight)
        return super().terms(student, teacher, labels) | {"loss_rkd": loss}
