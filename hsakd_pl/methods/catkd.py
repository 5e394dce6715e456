"""Class attention transfer (CAT-KD; Guo et al., CVPR 2023): match the maps of where each class is seen."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

EPSILON = 1e-12  # least norm of a class map that is normalised, as in the published code


@full_precision
def catkd_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    student_weight: Tensor,
    teacher_weight: Tensor,
    resolution: int = 2,
    normalize: bool = False,
) -> Tensor:
    r"""Return the mean squared difference of the networks' class maps (B, N, r, r), a scalar.

    .. math:: \overline{\left( P_s - P_t \right)^2}, \quad P = \mathrm{pool}_{r \times r}(W x)

    The head's weight W, without its bias, is applied at every position of the last map x; with ``normalize`` each class
    map P is divided by its Euclidean norm. The gradient reaches the student's map and its head.

    Source: Guo et al., CVPR 2023; GzyAftermath/CAT-KD @ 4467073.

    Args:
        student_map: map (B, C, H, W) that the student's head averages.
        teacher_map: map (B, C', H', W') of the teacher.
        student_weight: weight (N, C) of the student's head.
        teacher_weight: weight (N, C') of the teacher's head.
        resolution: side r of the class maps.
        normalize: divide each class map by its norm.

    Returns:
        Loss, a scalar.

    Examples:
        >>> feature_map, weight = torch.rand(2, 8, 4, 4), torch.rand(10, 8)
        >>> catkd_loss(feature_map, feature_map, weight, weight)
        tensor(0.)
    """
    student_classes = _class_maps(student_map, student_weight, resolution, normalize)
    teacher_classes = _class_maps(teacher_map.detach(), teacher_weight.detach(), resolution, normalize)
    return F.mse_loss(student_classes, teacher_classes)


def _class_maps(feature_map: Tensor, weight: Tensor, resolution: int, normalize: bool) -> Tensor:
    """Return class maps (B, N, r * r); pooling before the linear head gives the same as after it."""
    class_maps = weight @ F.adaptive_avg_pool2d(feature_map, resolution).flatten(2)
    return F.normalize(class_maps, dim=2, eps=EPSILON) if normalize else class_maps


class CATKDModule(DistilledModule):
    """Minimise CE + ``catkd_weight`` * :func:`catkd_loss` of the maps that the networks' heads average.

    In the published code student and teacher have a head without bias, a 1x1 convolution initialised as such, and the
    teacher's bias is dropped; here both keep their heads, whose bias does not enter the class maps. ``normalize`` is
    published for pairs of two families, with a weight between 15 and 600.

    Source: Guo et al., CVPR 2023.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        resolution: side of the class maps; 2 in the published recipes, 4 for shufflenets.
        normalize: divide each class map by its norm.
        catkd_weight: weight of the loss; published for wrn_40_2-wrn_16_2: 12.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: for a ``resolution`` below 1, and for a network that does not name its linear head.

    Examples:
        >>> module = CATKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_catkd']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        resolution: int = 2,
        normalize: bool = False,
        catkd_weight: float = 12.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        require(resolution >= 1, "resolution", resolution, "at least 1")
        self.set_loss_weights(loss_catkd=catkd_weight)
        self.shapes("pooled_map")
        self.linear_heads()
        self.resolution = resolution
        self.normalize = normalize

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        student_head, teacher_head = self.linear_heads()
        loss = catkd_loss(
            student.pooled_map,
            teacher.pooled_map,
            student_head.weight,
            teacher_head.weight,
            self.resolution,
            self.normalize,
        )
        return super().terms(student, teacher, labels) | {"loss_catkd": loss}
