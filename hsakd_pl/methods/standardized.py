"""Knowledge distillation with logit standardisation (KD+LS; Sun et al., CVPR 2024)."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, kd_loss
from hsakd_pl.signatures import Unpack

EPSILON = 1e-7  # added to the standard deviation, as in the published code


@full_precision
def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return KD of z-scored logits, a scalar.

    .. math:: T^2 \, \overline{\mathrm{KL}(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T))}, \quad
        z = \frac{x - \mathrm{mean}(x)}{\mathrm{std}(x) + 10^{-7}}

    Mean and unbiased std are over the classes of each image.

    Source: Sun et al., CVPR 2024.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        temperature: temperature of the z-scored logits, in standard deviations.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> standardized_kd_loss(logits, 3 * logits + 1).abs() < 1e-5
        tensor(True)
    """
    return kd_loss(standardized(student_logits), standardized(teacher_logits), temperature)


def standardized(logits: Tensor) -> Tensor:
    """Return z-scored logits (B, N): (z - mean) / (std + 1e-7) per image, std unbiased."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.std(1, keepdim=True) + EPSILON)


class StandardizedKDModule(DistilledModule):
    """Minimise 0.1 CE + 9 :func:`standardized_kd_loss` at a temperature of 2, as in the paper.

    Source: Sun et al., CVPR 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the KD term.
        temperature: temperature of the z-scored logits, in standard deviations.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = StandardizedKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
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
        kd_weight: float = 9.0,
        temperature: float = 2.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, temperature=temperature, **options)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = standardized_kd_loss(student.logits, teacher.logits, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_kd": loss}
