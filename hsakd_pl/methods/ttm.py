"""Transformed teacher matching (TTM and WTTM; Zheng and Yang, ICLR 2024): only the teacher is softened."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import row_divergence
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    r"""Return the divergence of the student from the softened teacher, a scalar.

    .. math:: \overline{\mathrm{KL}(\mathrm{softmax}(\gamma t) \,\|\, \mathrm{softmax}(s))}

    Unlike in KD, the student's logits are not divided by T, and the loss is not multiplied by T^2.

    Source: Zheng and Yang, ICLR 2024; zkxufo/TTM @ fe457b3.

    Args:
        student_logits: class logits s (B, N) of the student.
        teacher_logits: class logits t (B, N) of the teacher.
        gamma: exponent of the teacher's probabilities, an inverse temperature.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> ttm_loss(0.1 * logits, logits).abs() < 1e-6
        tensor(True)
    """
    return row_divergence(student_logits, gamma * teacher_logits).mean()


@full_precision
def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    r"""Return :func:`ttm_loss` with each image weighted by how unsure the teacher is, a scalar.

    .. math:: \overline{U \, \mathrm{KL}(\mathrm{softmax}(\gamma t) \,\|\, \mathrm{softmax}(s))}, \quad
        U = \sum_c \mathrm{softmax}(t)_c^\gamma

    U is above 1 for gamma below 1.

    Source: Zheng and Yang, ICLR 2024; zkxufo/TTM @ fe457b3.

    Args:
        student_logits: class logits s (B, N) of the student.
        teacher_logits: class logits t (B, N) of the teacher.
        gamma: exponent of the teacher's probabilities.

    Returns:
        Loss, a scalar.

    Examples:
        >>> student_logits, teacher_logits = torch.randn(4, 10), torch.randn(4, 10)
        >>> wttm_loss(student_logits, teacher_logits) > ttm_loss(student_logits, teacher_logits)
        tensor(True)
    """
    weights = (gamma * teacher_logits.detach().log_softmax(1)).logsumexp(1).exp()
    return (weights * row_divergence(student_logits, gamma * teacher_logits)).mean()


class TTMModule(DistilledModule):
    """Minimise CE + ``ttm_weight`` * :func:`ttm_loss`.

    Weights are published for two pairs only: 45 for vgg13-vgg8 and 76 for wrn_40_2-wrn_40_1, both with gamma = 0.1.

    Source: Zheng and Yang, ICLR 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        gamma: exponent of the teacher's probabilities.
        ttm_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = TTMModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_ttm']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        gamma: float = 0.1,
        ttm_weight: float = 45.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_ttm=ttm_weight)
        self.gamma = gamma

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = ttm_loss(student.logits, teacher.logits, self.gamma)
        return super().terms(student, teacher, labels) | {"loss_ttm": loss}


class WTTMModule(DistilledModule):
    """Minimise CE + ``wttm_weight`` * :func:`wttm_loss`.

    A weight is published only next to CRD, of weight 0.8, for vgg13-vgg8: 4 with gamma = 0.2.

    Source: Zheng and Yang, ICLR 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        gamma: exponent of the teacher's probabilities.
        wttm_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = WTTMModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_wttm']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        gamma: float = 0.2,
        wttm_weight: float = 4.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_wttm=wttm_weight)
        self.gamma = gamma

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = wttm_loss(student.logits, teacher.logits, self.gamma)
        return super().terms(student, teacher, labels) | {"loss_wttm": loss}
