"""Knowledge distillation with logit standardisation (Sun et al., CVPR 2024)."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, kd_loss

EPSILON = 1e-7  # added to the standard deviation, as in the published code


@full_precision
def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KD of logits in (unbiased) standard deviations from an image's mean: twice (B, N) -> a scalar."""
    return kd_loss(_standardized(student_logits), _standardized(teacher_logits), temperature)


def _standardized(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.std(1, keepdim=True) + EPSILON)


class StandardizedKDModule(DistilledModule):
    """Minimises 0.1 CE + 9 KD of standardised logits, at a temperature of 2 standard deviations."""

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
