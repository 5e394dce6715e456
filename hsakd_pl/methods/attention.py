"""Attention transfer (AT; Zagoruyko and Komodakis, ICLR 2017): match the positions of strong activations."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import Maps, paired, pooled_alike
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total
from hsakd_pl.signatures import Unpack


@full_precision
def attention_loss(student_maps: Maps, teacher_maps: Maps, power: float = 2.0) -> Tensor:
    r"""Return the mean squared difference of attention maps, summed over the stages, a scalar.

    .. math:: \sum_l \overline{\left( A(s_l) - A(t_l) \right)^2}, \quad
        A(x) = \frac{a}{\Vert a \Vert}, \quad a = \frac{1}{C} \sum_c x_c^p

    A is flattened over the positions. The larger of two maps is average-pooled to the smaller one's size.

    Source: Zagoruyko and Komodakis, ICLR 2017.

    Args:
        student_maps: L feature maps (B, C, H, W), or one.
        teacher_maps: as many feature maps; channels and sizes may differ.
        power: exponent of the activations.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if the numbers of maps differ.

    Examples:
        >>> maps = [torch.rand(2, 8, 4, 4)]
        >>> attention_loss(maps, maps)
        tensor(0.)
    """
    losses = []
    for student_map, teacher_map in paired(student_maps, teacher_maps):
        student_pooled, teacher_pooled = pooled_alike(student_map, teacher_map)
        difference = _attention(student_pooled, power) - _attention(teacher_pooled, power)
        losses.append(difference.square().mean())
    return total(losses)


def _attention(feature_map: Tensor, power: float) -> Tensor:
    return F.normalize(feature_map.pow(power).mean(1).flatten(1))


class AttentionModule(DistilledModule):
    """Minimise CE + ``at_weight`` * :func:`attention_loss` of the maps after all stages.

    Source: Zagoruyko and Komodakis, ICLR 2017.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        at_weight: weight of the loss; 1000 in the field's tables.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = AttentionModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_at']
    """

    def __init__(
        self, network: Net, teacher: Net, at_weight: float = 1000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_at=at_weight)
        self.shapes("features")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = attention_loss(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_at": loss}
