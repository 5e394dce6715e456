"""Decoupled knowledge distillation (DKD; Zhao et al., CVPR 2022): target and other classes weighted separately."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import against_others, all_but, row_divergence, row_divergence_among
from hsakd_pl.methods.options import KDOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Return the decoupled divergences of the target class and of the other classes, a scalar (Eq. 7 of the paper).

    .. math:: T^2 \, \overline{\alpha \, \mathrm{KL}([p_y, 1 - p_y] \,\|\, [q_y, 1 - q_y])
        + \beta \, \mathrm{KL}(\mathrm{softmax}(t_{\neq y} / T) \,\|\, \mathrm{softmax}(s_{\neq y} / T))}

    p = softmax(t / T), q = softmax(s / T): TCKD, and NCKD among all classes but the label y.

    Source: Zhao et al., CVPR 2022.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        labels: classes (B,).
        alpha: weight of the target class against all others.
        beta: weight of the divergence among the other classes.
        temperature: temperature T of both divergences.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> dkd_loss(logits, logits, torch.arange(4)).abs() < 1e-4
        tensor(True)
    """
    student = student_logits / temperature
    teacher = teacher_logits.detach() / temperature
    target_loss = row_divergence(against_others(student, labels), against_others(teacher, labels)).mean()
    others_loss = row_divergence_among(student, teacher, all_but(labels, student.shape[1])).mean()
    return temperature**2 * (alpha * target_loss + beta * others_loss)


class DKDModule(DistilledModule):
    """Minimise CE + ``dkd_weight`` * :func:`dkd_loss`.

    Source: Zhao et al., CVPR 2022.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        alpha: weight of the target class against all others.
        beta: weight of the divergence among the other classes; 8, 6 or 2 in the paper, depending on the networks.
        dkd_weight: weight of the loss.
        weight_warmup_epochs: epochs over which ``dkd_weight`` grows linearly; 20 in the paper.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = DKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_dkd']
    """

    uses_unlabelled = False
    needs_only_logits = True

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
