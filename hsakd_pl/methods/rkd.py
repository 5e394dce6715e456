"""Relational knowledge distillation (RKD; Park et al., CVPR 2019): match distances and angles between embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

LEAST_DISTANCE = 1e-12  # clamps squared distances and the mean distance, as in the published code


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    r"""Return the weighted errors of distances and of angles, a scalar (Eq. 5 to 8 of the paper).

    .. math:: w_d \, \overline{\mathrm{huber}(d_s - d_t)} + w_a \, \overline{\mathrm{huber}(c_s - c_t)}

    d are the distances between two images divided by their mean, c the cosines of the angles between three images.

    Source: Park et al., CVPR 2019.

    Args:
        student: embeddings (B, D) of the student.
        teacher: embeddings (B, D') of the teacher.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.

    Returns:
        Loss, a scalar.

    Examples:
        >>> embedding = torch.randn(4, 8)
        >>> rkd_loss(embedding, embedding)
        tensor(0.)
    """
    distance_loss = F.smooth_l1_loss(_distances(student), _distances(teacher))
    angle_loss = F.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return distance_weight * distance_loss + angle_weight * angle_loss


def _distances(embedding: Tensor) -> Tensor:
    """Return Euclidean distances (B, B), divided by the mean over different images."""
    images = len(embedding)
    squares = embedding.square().sum(1)
    squared_distances = squares[:, None] + squares - 2 * embedding @ embedding.T
    distances = squared_distances.clamp(min=LEAST_DISTANCE).sqrt()
    distances = distances.masked_fill(torch.eye(images, dtype=torch.bool, device=embedding.device), 0.0)
    mean = distances.sum() / max(images * (images - 1), 1)
    return distances / mean.clamp(min=LEAST_DISTANCE)


def _cosines(embedding: Tensor) -> Tensor:
    """Return cosines (B, B, B) of the angle at the first of three images."""
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


class RKDModule(DistilledModule):
    """Minimise CE + ``rkd_weight`` * :func:`rkd_loss`; each device compares its own images.

    Source: Park et al., CVPR 2019.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        distance_weight: weight of the distances; 25 in the field's tables.
        angle_weight: weight of the angles; 50 in the field's tables.
        rkd_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = RKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_rkd']
    """

    batch_terms = ("loss_rkd",)

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
