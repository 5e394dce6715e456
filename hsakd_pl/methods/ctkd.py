"""Curriculum temperature (CTKD; Li et al., AAAI 2023): the temperature is trained to make the task harder."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.methods.schedules import ScheduledFactor
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def ctkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    r"""Return KD at a temperature with a gradient, a scalar.

    .. math:: \tau^2 \, \overline{\mathrm{KL}(\mathrm{softmax}(t / \tau) \,\|\, \mathrm{softmax}(s / \tau))}

    The gradient of tau flows through all three of its places, also through the teacher's softmax.

    Source: Li et al., AAAI 2023; zhengli97/CTKD @ 7d52522.

    Args:
        student_logits: class logits s (B, N) of the student.
        teacher_logits: class logits t (B, N) of the teacher.
        temperature: temperature tau, of shape (1,) or ().

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> ctkd_loss(logits, logits, torch.tensor([4.0])).abs() < 1e-4
        tensor(True)
    """
    student_log = (student_logits / temperature).log_softmax(1)
    teacher_log = (teacher_logits.detach() / temperature).log_softmax(1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(1).mean()
    return (temperature.square() * divergence).sum()


class CurriculumTemperature(nn.Module):
    """Return tau = start + span * sigmoid(w), and reverse the gradient of w more from epoch to epoch.

    w, the only parameter, begins at 1, so tau begins at 1 + 20 * sigmoid(1) = 15.62, not at a temperature of KD. The
    student's optimizer trains w, with its learning rate and weight decay; as the gradient is reversed, the loss grows.

    Source: Li et al., AAAI 2023.

    Args:
        start: lower bound of tau.
        span: upper bound of tau - ``start``.
        ramp_epochs: epochs after which the gradient is fully reversed.

    Raises:
        UsageError: for a ``start`` of 0 or less, a negative ``span``, or less than one epoch.

    Examples:
        >>> curriculum = CurriculumTemperature()
        >>> curriculum(1)
        tensor([15.6212], grad_fn=<AddBackward0>)
        >>> [round(curriculum.reversal(epoch), 4) for epoch in (1, 5, 10, 20)]
        [-0.0245, -0.5, -1.0, -1.0]
    """

    def __init__(self, start: float = 1.0, span: float = 20.0, ramp_epochs: int = 10) -> None:
        super().__init__()
        require(start > 0, "start", start, "above 0")
        require(span >= 0, "span", span, "at least 0")
        require(ramp_epochs >= 1, "ramp_epochs", ramp_epochs, "at least 1")
        self.start = start
        self.span = span
        self.ramp_epochs = ramp_epochs
        self.parameter = nn.Parameter(torch.ones(1))

    def reversal(self, epoch: int) -> float:
        """Return the factor of the gradient of w in an epoch, counted from 1: from almost 0 to -1 along a cosine."""
        return -(1 - math.cos(math.pi * min(epoch, self.ramp_epochs) / self.ramp_epochs)) / 2

    def forward(self, epoch: int) -> Tensor:
        """Return tau, (1,), whose gradient reaches w multiplied by the reversal of the epoch, counted from 1."""
        return self.reversed_by(self.reversal(epoch))

    def reversed_by(self, factor: float | Tensor) -> Tensor:
        """Return tau, (1,), whose gradient reaches w multiplied by ``factor``."""
        constant = self.parameter.detach()
        parameter = constant + factor * (self.parameter - constant)  # of the value of w, and the gradient times factor
        return self.start + self.span * parameter.sigmoid()


class CTKDModule(DistilledModule):
    """Minimise 0.1 CE + 0.9 :func:`ctkd_loss` over the student, while a global temperature maximises it.

    Published for resnet56-resnet20: 0.1, 0.9, tau from 1 to 21, reversed over 10 epochs.

    Source: Li et al., AAAI 2023.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropy.
        ctkd_weight: weight of the loss.
        start: lower bound of the temperature.
        span: upper bound of the temperature less ``start``.
        ramp_epochs: epochs after which the gradient of the temperature is fully reversed.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = CTKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_ctkd']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        ce_weight: float = 0.1,
        ctkd_weight: float = 0.9,
        start: float = 1.0,
        span: float = 20.0,
        ramp_epochs: int = 10,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, **options)
        self.set_loss_weights(loss_ctkd=ctkd_weight)
        self.curriculum = CurriculumTemperature(start, span, ramp_epochs)
        self.reversal = ScheduledFactor(self.curriculum.reversal)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        temperature = self.curriculum.reversed_by(self.reversal())
        loss = ctkd_loss(student.logits, teacher.logits, temperature)
        return super().terms(student, teacher, labels) | {"loss_ctkd": loss}
