"""Correlation congruence (CC; Peng et al., ICCV 2019), as in the code of the published tables (CRD's repository)."""

import torch.nn as nn
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean product of the differences of neighbours in the batch, a scalar.

    .. math:: \frac{1}{B - 1} \sum_{i=1}^{B - 1} \, \sum_d \left| s_{i,d} - t_{i,d} \right|
        \left| s_{i+1,d} - t_{i+1,d} \right|

    Source: Peng et al., ICCV 2019.

    Args:
        student: linear embeddings (B, D) of the student.
        teacher: linear embeddings (B, D) of the teacher.

    Returns:
        Loss, a scalar.

    Examples:
        >>> correlation_loss(torch.ones(3, 2), torch.zeros(3, 2))
        tensor(2.)
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class CorrelationModule(DistilledModule):
    """Minimise CE + ``cc_weight`` * :func:`correlation_loss` of linear embeddings; each device sees its own images.

    Source: Peng et al., ICCV 2019.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        width: width of the two linear embeddings, both trained.
        cc_weight: weight of the loss; 0.02 in the field's tables.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = CorrelationModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_cc']
    """

    batch_terms = ("loss_cc",)

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
