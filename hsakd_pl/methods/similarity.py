"""Similarity-preserving distillation (SP; Tung and Mori, ICCV 2019): match similarities within a batch."""

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import Maps, paired
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total
from hsakd_pl.signatures import Unpack


@full_precision
def similarity_loss(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    r"""Return the mean squared difference of similarities within the batch, a scalar, summed if there are several maps.

    .. math:: \overline{\left( G(s) - G(t) \right)^2}, \quad G(x)_i = \frac{(x x^\top)_i}{\Vert (x x^\top)_i \Vert}

    The rows of x are the flattened maps of the images, and each row i of the Gram matrix (B, B) is divided by its norm
    (Eq. 2 to 4 of the paper).

    Source: Tung and Mori, ICCV 2019.

    Args:
        student_maps: feature map (B, C, H, W), or several.
        teacher_maps: as many feature maps; channels and sizes may differ.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if the numbers of maps differ.

    Examples:
        >>> feature_map = torch.rand(4, 8, 2, 2)
        >>> similarity_loss(feature_map, 2 * feature_map) < 1e-12
        tensor(True)
    """
    losses = []
    for student_map, teacher_map in paired(student_maps, teacher_maps):
        difference = _similarities(student_map) - _similarities(teacher_map)
        losses.append(difference.square().mean())
    return total(losses)


def _similarities(feature_map: Tensor) -> Tensor:
    rows = feature_map.flatten(1)
    return F.normalize(rows @ rows.T)


class SimilarityModule(DistilledModule):
    """Minimise CE + ``sp_weight`` * :func:`similarity_loss` of the last maps; each device compares its own images.

    Source: Tung and Mori, ICCV 2019.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        sp_weight: weight of the loss; 3000 in the field's tables.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = SimilarityModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_sp']
    """

    batch_terms = ("loss_sp",)

    def __init__(
        self, network: Net, teacher: Net, sp_weight: float = 3000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_sp=sp_weight)
        self.shapes("features")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = similarity_loss(student.features[-1], teacher.features[-1])
        return super().terms(student, teacher, labels) | {"loss_sp": loss}
