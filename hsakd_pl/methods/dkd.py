"""Decoupled knowledge distillation (DKD; Zhao et al., CVPR 2022)."""

from typing import Any

import torch
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, kd_loss


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
    target, both = labels[:, None], (student_logits / temperature, teacher_logits / temperature)
    others = [logits.scatter(1, target, -1000.0) for logits in both]  # as published: exactly 0, of finite logarithm
    pairs = [(one.gather(1, target), rest.logsumexp(1, keepdim=True)) for one, rest in zip(both, others, strict=True)]
    ours, theirs = (torch.cat(pair, 1) for pair in pairs)  # of the target, and of all others as one class
    return temperature**2 * (alpha * kd_loss(ours, theirs, 1.0) + beta * kd_loss(others[0], others[1], 1.0))


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
        **rest: Any,
    ) -> None:
        super().__init__(network, teacher, {"loss_dkd": dkd_weight}, weight_warmup_epochs, **rest)
        self.factors = alpha, beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = dkd_loss(student.logits, teacher.logits, labels, *self.factors, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_dkd": loss}
