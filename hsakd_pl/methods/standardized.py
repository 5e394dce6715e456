"""Knowledge distillation with logit standardisation (Sun et al., CVPR 2024)."""

from torch import Tensor

from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import kd_loss

EPSILON = 1e-7  # added to a standard deviation, as published


def standardized(logits: Tensor) -> Tensor:
    """Subtract from each image's logits (B, N) their mean and divide by their (unbiased) standard deviation."""
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + EPSILON)


@full_precision
def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KD of standardised logits, twice (B, N) -> a scalar; ``temperature`` is the base temperature of its paper."""
    return kd_loss(standardized(student_logits), standardized(teacher_logits), temperature)
