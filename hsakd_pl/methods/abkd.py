"""Distillation by alpha-beta divergences (ABKD; Wang et al., ICML 2025), of plain or of standardised logits."""

import torch
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions, PairOptions
from hsakd_pl.methods.standardized import standardized
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def abkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha: float = 0.8,
    beta: float = 0.3,
    temperature: float = 4.0,
) -> Tensor:
    r"""Return the mean alpha-beta divergence of the teacher's p and the student's q, a scalar, without T^2.

    .. math:: D = -\frac{1}{\alpha \beta} \overline{\sum_c \left( p_c^\alpha q_c^\beta
        - \frac{\alpha}{\alpha + \beta} p_c^{\alpha + \beta}
        - \frac{\beta}{\alpha + \beta} q_c^{\alpha + \beta} \right)}

    p = softmax(t / T), q = softmax(s / T), and the mean is over images. For beta = 0 or alpha = 0 it is the limit:
    alpha = 1, beta = 0 is KL(p || q). (The published code divides these two by alpha or beta instead of by its square,
    which differs from the limit unless it is 1.)

    Source: Wang et al., ICML 2025; ghwang-s/abkd @ df81318.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        alpha: exponent of the teacher's probabilities.
        beta: exponent of the student's probabilities; alpha + beta must not be 0.
        temperature: temperature T of both.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if alpha + beta is 0.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> abkd_loss(logits, logits).abs() < 1e-5
        tensor(True)
    """
    _require_exponents(alpha, beta)
    teacher_log = (teacher_logits.detach() / temperature).log_softmax(1)
    student_log = (student_logits / temperature).log_softmax(1)
    if beta == 0:
        return _limit(teacher_log, student_log, alpha).mean()
    if alpha == 0:
        return _limit(student_log, teacher_log, beta).mean()
    # of the larger probability m and the smaller one m e^d, whose exponent is c, with both = alpha + beta:
    # m^both * (e^(c d) - 1 - c / both * (e^(both d) - 1)), in which ones do not cancel as in the sum of three powers
    both = alpha + beta
    larger = torch.maximum(teacher_log, student_log)
    ratio = -(teacher_log - student_log).abs()
    exponent = torch.full_like(ratio, alpha).masked_fill(student_log <= teacher_log, beta)
    difference = torch.expm1(exponent * ratio) - exponent / both * torch.expm1(both * ratio)
    return -((both * larger).exp() * difference).sum(1).mean() / (alpha * beta)


def _limit(one_log: Tensor, other_log: Tensor, power: float) -> Tensor:
    """Return the divergence (B,) of log probabilities for an exponent of 0: the generalised KL of powers, / power^2."""
    one = (power * one_log).exp()
    other = (power * other_log).exp()
    return (power * one * (one_log - other_log) - one + other).sum(1) / power**2


def _require_exponents(alpha: float, beta: float) -> None:
    require(alpha + beta != 0, "alpha + beta", alpha + beta, "other than 0")


@full_precision
def standardized_abkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha: float = 0.9,
    beta: float = 0.3,
    temperature: float = 2.0,
) -> Tensor:
    r"""Return T^2 times the alpha-beta divergence of z-scored logits, a scalar.

    .. math:: T^2 D(z_t, z_s), \quad z = \frac{x - \mathrm{mean}(x)}{\mathrm{std}(x) + 10^{-7}}

    D is :func:`abkd_loss`; mean and unbiased std are over the classes of each image.

    Source: Wang et al., ICML 2025; ghwang-s/abkd @ df81318.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        alpha: exponent of the teacher's probabilities.
        beta: exponent of the student's probabilities.
        temperature: temperature T of the z-scored logits, in standard deviations.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if alpha + beta is 0.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> standardized_abkd_loss(logits, 3 * logits + 1).abs() < 1e-5
        tensor(True)
    """
    divergence = abkd_loss(standardized(student_logits), standardized(teacher_logits), alpha, beta, temperature)
    return temperature**2 * divergence


class ABKDModule(DistilledModule):
    """Minimise CE + ``abkd_weight`` * :func:`abkd_loss`.

    Published for resnet56-resnet20: alpha = 0.8, beta = 0.3, T = 4, and a weight of 32 in the README of the code but of
    64 in its script. The published runs drop the last, smaller batch of an epoch.

    Source: Wang et al., ICML 2025.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        alpha: exponent of the teacher's probabilities.
        beta: exponent of the student's probabilities.
        abkd_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if alpha + beta is 0.

    Examples:
        >>> module = ABKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_abkd']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        alpha: float = 0.8,
        beta: float = 0.3,
        abkd_weight: float = 32.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        _require_exponents(alpha, beta)
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_abkd=abkd_weight)
        self.alpha = alpha
        self.beta = beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = abkd_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_abkd": loss}


class StandardizedABKDModule(DistilledModule):
    """Minimise 0.1 CE + 9 :func:`standardized_abkd_loss` at a temperature of 2, as published for resnet56-resnet20.

    Source: Wang et al., ICML 2025.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        alpha: exponent of the teacher's probabilities.
        beta: exponent of the student's probabilities.
        ce_weight: weight of the cross-entropy.
        abkd_weight: weight of the loss.
        temperature: temperature of the z-scored logits, in standard deviations.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if alpha + beta is 0.

    Examples:
        >>> module = StandardizedABKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_abkd']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        alpha: float = 0.9,
        beta: float = 0.3,
        ce_weight: float = 0.1,
        abkd_weight: float = 9.0,
        temperature: float = 2.0,
        **options: Unpack[PairOptions],
    ) -> None:
        _require_exponents(alpha, beta)
        super().__init__(network, teacher, ce_weight=ce_weight, temperature=temperature, **options)
        self.set_loss_weights(loss_abkd=abkd_weight)
        self.alpha = alpha
        self.beta = beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = standardized_abkd_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_abkd": loss}
