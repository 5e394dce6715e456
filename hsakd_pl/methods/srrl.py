"""Softmax regression representation learning (SRRL; Yang et al., ICLR 2021): embeddings that fit the teacher's head.

The losses are those of the repository of SimKD, whose tables contain this method.
"""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


def srrl_transfer(student_width: int, teacher_width: int) -> nn.Sequential:
    """Return the trained map of embeddings (B, student_width) -> (B, teacher_width): linear, norm, ReLU.

    Source: Yang et al., ICLR 2021.

    Args:
        student_width: width D of the student's embedding.
        teacher_width: width D' of the teacher's embedding.

    Returns:
        Sequence of layers with fresh weights.

    Examples:
        >>> srrl_transfer(64, 256)(torch.randn(4, 64)).shape
        torch.Size([4, 256])
    """
    linear = nn.Linear(student_width, teacher_width, bias=False)
    return nn.Sequential(linear, nn.BatchNorm1d(teacher_width), nn.ReLU())


def srrl_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, weight: Tensor, bias: Tensor, transfer: nn.Module
) -> Tensor:
    r"""Return the squared errors of embeddings and of logits through the teacher's head, a scalar.

    .. math:: \overline{(h - e_t)^2} + \overline{(W h - W e_t)^2}, \quad h = \text{transfer}(e_s)

    Both means are over all elements. No gradient reaches the teacher's embedding and head.

    Source: Yang et al., ICLR 2021; DefangChen/SimKD @ 2b389c3.

    Args:
        student_embedding: embeddings (B, D) of the student.
        teacher_embedding: embeddings (B, D') of the teacher.
        weight: weight (N, D') of the teacher's head.
        bias: bias (N,) of the teacher's head.
        transfer: trained map of embeddings, as :func:`srrl_transfer` returns it.

    Returns:
        Loss, a scalar.

    Examples:
        >>> embedding, weight, bias = torch.rand(4, 8), torch.randn(10, 8), torch.zeros(10)
        >>> srrl_loss(embedding, embedding, weight, bias, torch.nn.Identity())
        tensor(0.)
    """
    return _transferred_loss(transfer(student_embedding), teacher_embedding, weight, bias)


@full_precision
def _transferred_loss(transferred: Tensor, teacher_embedding: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    teacher_embedding = teacher_embedding.detach()
    weight = weight.detach()
    bias = None if bias is None else bias.detach()
    student_logits = F.linear(transferred, weight, bias)
    teacher_logits = F.linear(teacher_embedding, weight, bias)
    return F.mse_loss(transferred, teacher_embedding) + F.mse_loss(student_logits, teacher_logits)


class SRRLModule(DistilledModule):
    """Minimise CE + KD + ``srrl_weight`` * :func:`srrl_loss`.

    Source: Yang et al., ICLR 2021.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        srrl_weight: weight of the loss.
        kd_weight: weight of the KD term; 1 in the published code.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = SRRLModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_srrl']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        srrl_weight: float = 1.0,
        kd_weight: float = 1.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, kd_weight=kd_weight, **options)
        self.set_loss_weights(loss_srrl=srrl_weight)
        student_shapes, teacher_shapes = self.shapes("embedding")
        self.linear_heads()
        self.transfer = srrl_transfer(student_shapes.width, teacher_shapes.width)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        _, head = self.linear_heads()
        transferred = self.transfer(student.embedding)
        loss = _transferred_loss(transferred, teacher.embedding, head.weight, head.bias)
        return super().terms(student, teacher, labels) | {"loss_srrl": loss}
