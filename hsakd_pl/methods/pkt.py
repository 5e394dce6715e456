"""Probabilistic knowledge transfer (PKT; Passalis and Tefas, ECCV 2018)."""

from typing import Any

from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the probabilities with which an image of a batch would choose each as its neighbour, over B * B.

    Embeddings (B, D) and (B, D') -> a scalar (Eq. 8 of the paper, cosine similarity).
    """
    ours, theirs = _neighbours(student), _neighbours(teacher)
    return (theirs * ((theirs + 1e-7) / (ours + 1e-7)).log()).mean()  # as published


def _neighbours(rows: Tensor) -> Tensor:
    """Cosine similarities (B, B), shifted to [0, 1], that sum to 1 in each row."""
    rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-7)  # as published
    similarity = (rows @ rows.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKTModule(DistilledModule):
    """Minimises CE + ``pkt_weight`` times the divergence of neighbourhoods; a device sees its own images."""

    def __init__(self, network: Net, teacher: Net, pkt_weight: float = 30000.0, **rest: Any) -> None:
        super().__init__(network, teacher, {"loss_pkt": pkt_weight}, **rest)
        self.shapes("embedding")

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        return super().terms(student, teacher, labels) | {"loss_pkt": pkt_loss(student.embedding, teacher.embedding)}
