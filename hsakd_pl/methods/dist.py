"""Distillation by correlations instead of KL (DIST; Huang et al., NeurIPS 2022)."""

from typing import Any

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    temperature: float = 4.0,
) -> Tensor:
    """Weigh 1 minus Pearson's correlation of probabilities: over an image's classes (inter), over a class's images.

    Logits twice (B, N) -> a scalar, times ``temperature ** 2`` (Eq. 9 and 10 of the paper).
    """
    ours, theirs = ((logits / temperature).softmax(1) for logits in (student_logits, teacher_logits))
    inter, intra = 1 - _correlation(ours, theirs, 1).mean(), 1 - _correlation(ours, theirs, 0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    one, other = (each - each.mean(dim, keepdim=True) for each in (one, other))
    return (one * other).sum(dim) / (one.norm(dim=dim) * other.norm(dim=dim) + 1e-8)  # as published


class DISTModule(DistilledModule):
    """Minimises CE + ``dist_weight`` times what probabilities lack in correlation: over an image's classes, by
    ``inter_weight``, and over a device's images, by ``intra_weight``.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        dist_weight: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(network, teacher, {"loss_dist": dist_weight}, **rest)
        self.factors = inter_weight, intra_weight

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = dist_loss(student.logits, teacher.logits, *self.factors, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_dist": loss}
