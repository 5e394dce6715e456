"""Normalised logits in distillation (NormKD; Chi et al., 2023): each image has a temperature of its own."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import row_divergence
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def normkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return KD with a temperature of each image and network, a scalar.

    .. math:: \overline{T_t^2 \, \mathrm{KL}(\mathrm{softmax}(t / T_t) \,\|\, \mathrm{softmax}(s / T_s))}, \quad
        T_t = T \, \mathrm{std}(t), \; T_s = T \, \mathrm{std}(s)

    std is unbiased, over the classes of an image; the gradient flows through T_s. It is :func:`standardized_kd_loss` at
    the same T, but for the weight var(t) of an image and the 1e-7 that is added there. Logits that are all equal divide
    by 0.

    Source: Chi et al., 2023; gizi1/NormKD @ 279371b.

    Args:
        student_logits: class logits s (B, N) of the student.
        teacher_logits: class logits t (B, N) of the teacher.
        temperature: temperature T, in standard deviations of the logits.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> normkd_loss(logits, 3 * logits + 1).abs() < 1e-5
        tensor(True)
    """
    teacher_logits = teacher_logits.detach()
    student_temperature = temperature * student_logits.std(1, keepdim=True)
    teacher_temperature = temperature * teacher_logits.std(1, keepdim=True)
    divergence = row_divergence(student_logits / student_temperature, teacher_logits / teacher_temperature)
    return (teacher_temperature.squeeze(1).square() * divergence).mean()


class NormKDModule(DistilledModule):
    """Minimise 0.1 CE + 0.9 :func:`normkd_loss` at a temperature of 2, as published for all classic pairs.

    Source: Chi et al., 2023.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the KD term.
        temperature: temperature in standard deviations of the logits.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = NormKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        temperature: float = 2.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, temperature=temperature, **options)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = normkd_loss(student.logits, teacher.logits, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_kd": loss}
