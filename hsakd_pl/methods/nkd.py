"""Normalised knowledge distillation (NKD; Yang et al., ICCV 2023): label and other classes as two cross-entropies."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import all_but, log_softmax_among
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    r"""Return the cross-entropies of the label and among the other classes, a scalar.

    .. math:: -\overline{p_y \log q_y} - \gamma T^2 \, \overline{\sum_{c \neq y} p'_c \log q'_c}

    p, q are the probabilities of teacher and student at a temperature of 1, whatever T is; p', q' those among the
    classes other than y, at T. Cross-entropies rather than KL: the loss of equal logits is not 0. Copies elsewhere
    include the label among the others, which is another loss.

    Source: Yang et al., ICCV 2023; yzd-v/cls_KD @ 1e5d48f.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        labels: classes y (B,).
        gamma: weight of the other classes.
        temperature: temperature T of the other classes.

    Returns:
        Loss, a scalar.

    Examples:
        >>> nkd_loss(torch.zeros(4, 10), torch.zeros(4, 10), torch.arange(4))
        tensor(3.5261)
    """
    target = labels[:, None]
    teacher_logits = teacher_logits.detach()
    label_loss = -teacher_logits.softmax(1).gather(1, target) * student_logits.log_softmax(1).gather(1, target)
    others = all_but(labels, student_logits.shape[1])
    student_log = log_softmax_among(student_logits / temperature, others)
    teacher_log = log_softmax_among(teacher_logits / temperature, others)
    others_loss = -(teacher_log.exp() * student_log).sum(1)
    return label_loss.mean() + gamma * temperature**2 * others_loss.mean()


class NKDModule(DistilledModule):
    """Minimise CE + ``nkd_weight`` * :func:`nkd_loss`.

    Published for CIFAR-100, resnet34-resnet18: gamma = 3.5, T = 3; for ImageNet 1.5 and 1. None of the classic pairs.

    Source: Yang et al., ICCV 2023.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        gamma: weight of the other classes.
        nkd_temperature: temperature of the other classes.
        nkd_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = NKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_nkd']
    """

    uses_unlabelled = False
    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        gamma: float = 1.5,
        nkd_temperature: float = 1.0,
        nkd_weight: float = 1.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_nkd=nkd_weight)
        self.gamma = gamma
        self.nkd_temperature = nkd_temperature

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = nkd_loss(student.logits, teacher.logits, labels, self.gamma, self.nkd_temperature)
        return super().terms(student, teacher, labels) | {"loss_nkd": loss}
