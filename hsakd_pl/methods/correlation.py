"""Correlation congruence (CC; Peng et al., ICCV 2019), as the published tables' code has it."""

import torch.nn as nn
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Average over neighbours in the batch the product of their absolute differences, summed over D.

    Linear embeddings, twice (B, D) -> a scalar.
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class CorrelationModule(DistilledModule):
    """Minimises CE + ``cc_weight`` times differences of both networks' linear embeddings; a device sees its own images.

    Args:
        width: of the linear embeddings, both of which are trained.
    """

    def __init__(
        self, network: Net, teacher: Net, width: int = 128, cc_weight: float = 0.02, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_cc=cc_weight)
        student_shapes, teacher_shapes = self.shapes("embedding")
        self.embed_student = nn.Linear(student_shapes.width, width)
        self.embed_teacher = nn.Linear(teacher_shapes.width, width)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = correlation_loss(self.embed_student(student.embedding), self.embed_teacher(teacher.embedding))
        return super().terms(student, teacher, labels) | {"loss_cc": loss}
