"""Distillation by correlations instead of KL (DIST; Huang et al., NeurIPS 2022)."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

EPSILON = 1e-8  # keeps the correlation of constant probabilities finite, as in the published code


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Return 1 less the correlation of the networks' probabilities, over classes and over images, a scalar.

    .. math:: T^2 \left( w_\mathrm{inter} (1 - \overline{r_\mathrm{inter}})
        + w_\mathrm{intra} (1 - \overline{r_\mathrm{intra}}) \right)

    r is Pearson's correlation of the two networks' probabilities at temperature T: over the classes of an image
    (inter), and over the images of a class (intra; Eq. 9 and 10 of the paper).

    Source: Huang et al., NeurIPS 2022.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        inter_weight: weight of the correlation over classes.
        intra_weight: weight of the correlation over images.
        temperature: temperature T of the probabilities.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> dist_loss(logits, logits).abs() < 0.01
        tensor(True)
    """
    student_probabilities = (student_logits / temperature).softmax(1)
    teacher_probabilities = (teacher_logits / temperature).softmax(1)
    inter_loss = 1 - _correlation(student_probabilities, teacher_probabilities, dim=1).mean()
    intra_loss = 1 - _correlation(student_probabilities, teacher_probabilities, dim=0).mean()
    return temperature**2 * (inter_weight * inter_loss + intra_weight * intra_loss)


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Return Pearson's correlation over a dimension."""
    student = student - student.mean(dim, keepdim=True)
    teacher = teacher - teacher.mean(dim, keepdim=True)
    return (student * teacher).sum(dim) / (student.norm(dim=dim) * teacher.norm(dim=dim) + EPSILON)


class DISTModule(DistilledModule):
    """Minimise CE + ``dist_weight`` * :func:`dist_loss`; each device compares its own images.

    Source: Huang et al., NeurIPS 2022.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        inter_weight: weight of the correlation over the classes of an image; 2 in the paper.
        intra_weight: weight of the correlation over the images of a class; 2 in the paper.
        dist_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = DISTModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_dist']
    """

    needs_only_logits = True
    batch_terms = ("loss_dist",)

    def __init__(
        self,
        network: Net,
        teacher: Net,
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        dist_weight: float = 1.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_dist=dist_weight)
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = dist_loss(student.logits, teacher.logits, self.inter_weight, self.intra_weight, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_dist": loss}
