"""Knowledge review (ReviewKD; Chen et al., CVPR 2021): each stage learns from the teacher's earlier ones too."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import Review, paired
from hsakd_pl.ops import full_precision, total


@full_precision
def hierarchical_context_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over the stages the mean squared error of maps (B, C, H, W) at their own and smaller sizes -> a scalar.

    The sizes' weights 1, 1/2, ... are divided by their sum (Sec. 3.4 of its paper).
    """
    return total(_context_loss(*pair) for pair in zip(student_maps, teacher_maps, strict=True))


def _context_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    sizes = [size for size in (4, 2, 1) if size < ours.shape[2]]  # as published
    levels = [(ours, theirs), *((F.adaptive_avg_pool2d(ours, s), F.adaptive_avg_pool2d(theirs, s)) for s in sizes)]
    weighted = total(F.mse_loss(*level) / 2**depth for depth, level in enumerate(levels))
    return weighted / sum(2**-depth for depth in range(len(levels)))


class ReviewKDModule(DistilledModule):
    """Minimises CE + ``reviewkd_weight`` times the error of fused maps, a weight which grows over the first epochs.

    The published code takes maps before their last ReLU, this one the maps that networks show.

    Args:
        mid_channels: of the fused maps; by default the student's embedding, at most 512.
        reviewkd_weight: 5, 8, 0.6 or 1 in the field's tables, by the pair of networks.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        mid_channels: int | None = None,
        reviewkd_weight: float = 5.0,
        weight_warmup_epochs: int = 20,
        **rest: Any,
    ) -> None:
        super().__init__(network, teacher, {"loss_reviewkd": reviewkd_weight}, weight_warmup_epochs, **rest)
        pairs = paired(*(each.maps() for each in self.shapes("features", "embedding")))
        ours, theirs = zip(*((one.shape[1], other.shape[1]) for one, other in pairs), strict=True)
        self.review = Review(ours, theirs, mid_channels or min(512, ours[-1]))

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = hierarchical_context_loss(self.review(student.maps(), teacher.maps()), teacher.maps())
        return super().terms(student, teacher, labels) | {"loss_reviewkd": loss}
