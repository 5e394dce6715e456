"""Decoupled knowledge distillation (DKD; Zhao et al., CVPR 2022)."""

import torch
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import KDOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, kd_loss

MASKED_LOGIT = -1000.0  # of the target among the others: probability exactly 0, finite logarithm, as published


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Weigh two KD losses: ``alpha`` target against all others, ``beta`` among the others (Eq. 7 of the paper).

    Logits twice (B, N), labels (B,) -> a scalar, times ``temperature ** 2``.
    """
    student_binary, student_others = _decoupled(student_logits / temperature, labels)
    teacher_binary, teacher_others = _decoupled(teacher_logits / temperature, labels)
    target_loss = kd_loss(student_binary, teacher_binary, 1.0)
    others_loss = kd_loss(student_others, teacher_others, 1.0)
    return temperature**2 * (alpha * target_loss + beta * others_loss)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, 2) of the target and of all others as one class, and (B, N) with the target masked."""
    target = labels[:, None]
    others = logits.scatter(1, target, MASKED_LOGIT)
    binary = torch.cat([logits.gather(1, target), others.logsumexp(1, keepdim=True)], 1)
    return binary, others


class DKDModule(DistilledModule):
    """Minimises CE + ``dkd_weight`` times decoupled distillation, a weight which grows over the first epochs.

    Args:
        alpha: factor of the target class against all others.
        beta: factor of the other classes among themselves; 8, 6 or 2 in the paper, by the pair of networks.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        alpha: float = 1.0,
        beta: float = 8.0,
        dkd_weight: float = 1.0,
        weight_warmup_epochs: int = 20,
        **options: Unpack[KDOptions],
    ) -> None:
        super().__init__(network, teacher, weight_warmup_epochs=weight_warmup_epochs, **options)
        self.set_loss_weights(loss_dkd=dkd_weight)
        self.alpha = alpha
        self.beta = beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = dkd_loss(student.logits, teacher.logits, labels, self.alpha, self.beta, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_dkd": loss}
