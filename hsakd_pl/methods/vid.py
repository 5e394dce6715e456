"""Variational information distillation (VID; Ahn et al., CVPR 2019)."""

from typing import Any

import torch.nn as nn
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import Variational, paired
from hsakd_pl.ops import full_precision, total


@full_precision
def vid_loss(mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    """Average the Gaussian's negative log-likelihood of the teacher's map, without its constant -> a scalar.

    ``mean`` and ``teacher_map`` (B, C, H, W), ``variance`` (C,) (Eq. 5 of the paper).
    """
    return ((mean - teacher_map).square() / variance[:, None, None] + variance.log()[:, None, None]).mean() / 2


class VIDModule(DistilledModule):
    """Minimises CE + ``vid_weight`` times what the student's maps leave unexplained of the teacher's, after all stages.

    Args:
        variance: of each channel, which is learnt, at first.
    """

    def __init__(self, network: Net, teacher: Net, variance: float = 5.0, vid_weight: float = 1.0, **rest: Any) -> None:
        super().__init__(network, teacher, {"loss_vid": vid_weight}, **rest)
        pairs = paired(*(each.features for each in self.shapes("features")))
        self.stages = nn.ModuleList(Variational(ours.shape[1], theirs.shape[1], variance) for ours, theirs in pairs)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        triples = zip(self.stages, student.features, teacher.features, strict=True)
        loss = total(vid_loss(*stage(ours, theirs)) for stage, ours, theirs in triples)
        return super().terms(student, teacher, labels) | {"loss_vid": loss}
