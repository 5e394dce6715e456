"""Probabilistic knowledge transfer (PKT; Passalis and Tefas, ECCV 2018): match the neighbourhoods of embeddings."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

EPSILON = 1e-7  # keeps norms and logarithms finite, as in the published code


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the divergence of the probabilities of neighbours in the batch, a scalar (Eq. 8 of the paper).

    .. math:: \frac{1}{B^2} \sum_{i,j} t_{ij} \log \frac{t_{ij}}{s_{ij}}

    s_ij and t_ij are the cosine similarities of the images i and j, shifted to [0, 1], divided by their sum over j.

    Source: Passalis and Tefas, ECCV 2018.

    Args:
        student: embeddings (B, D) of the student.
        teacher: embeddings (B, D') of the teacher.

    Returns:
        Loss, a scalar.

    Examples:
        >>> embedding = torch.randn(4, 8)
        >>> pkt_loss(embedding, embedding)
        tensor(0.)
    """
    student_neighbours = _neighbours(student)
    teacher_neighbours = _neighbours(teacher)
    ratio = (teacher_neighbours + EPSILON) / (student_neighbours + EPSILON)
    return (teacher_neighbours * ratio.log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """Return cosine similarities (B, B), shifted to [0, 1], with row sums of 1."""
    directions = embedding / (embedding.norm(dim=1, keepdim=True) + EPSILON)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKTModule(DistilledModule):
    """Minimise CE + ``pkt_weight`` * :func:`pkt_loss`; each device compares its own images.

    Source: Passalis and Tefas, ECCV 2018.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        pkt_weight: weight of the loss; 30000 in the field's tables.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = PKTModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_pkt']
    """

    batch_terms = ("loss_pkt",)

    def __init__(
        self, network: Net, teacher: Net, pkt_weight: float = 30000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_pkt=pkt_weight)
        self.shapes("embedding")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = pkt_loss(student.embedding, teacher.embedding)
        return super().terms(student, teacher, labels) | {"loss_pkt": loss}
