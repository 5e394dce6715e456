"""Probabilistic knowledge transfer (PKT; Passalis and Tefas, ECCV 2018)."""

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision

EPSILON = 1e-7  # keeps norms and logarithms finite, as in the published code


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the probabilities with which an image of a batch would choose each as its neighbour, over B * B.

    Embeddings (B, D) and (B, D') -> a scalar (Eq. 8 of the paper, cosine similarity).
    """
    student_neighbours = _neighbours(student)
    teacher_neighbours = _neighbours(teacher)
    ratio = (teacher_neighbours + EPSILON) / (student_neighbours + EPSILON)
    return (teacher_neighbours * ratio.log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """Cosine similarities (B, B), shifted to [0, 1], that sum to 1 in each row."""
    directions = embedding / (embedding.norm(dim=1, keepdim=True) + EPSILON)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKTModule(DistilledModule):
    """Minimises CE + ``pkt_weight`` times the divergence of neighbourhoods; a device sees its own images."""

    def __init__(
        self, network: Net, teacher: Net, pkt_weight: float = 30000.0, **options: Unpack[DistilledOptions]
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_pkt=pkt_weight)
        self.shapes("embedding")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = pkt_loss(student.embedding, teacher.embedding)
        return super().terms(student, teacher, labels) | {"loss_pkt": loss}
