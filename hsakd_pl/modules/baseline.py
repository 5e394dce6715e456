"""A network trained alone."""

import torch.nn as nn

from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial
from hsakd_pl.modules.options import TrainingOptions
from hsakd_pl.signatures import Unpack


class BaselineModule(HSAKDModule):
    """Minimises the cross-entropy on untransformed images: "Student" in Table 1 of the paper.

    Args:
        network: a name (:func:`hsakd_pl.create_network`), or a network; branches that it has are left out.
        weights: file to start from; ``pretrained`` for those that timm publishes.
        num_classes: of a network by name, or of a user's own.
        new_head: whether the class head's and the branches' last layers stay fresh, for ``weights`` of other classes.

    Other arguments: :class:`HSAKDModule`.
    """

    def __init__(
        self,
        network: str | nn.Module,
        weights: str | None = None,
        num_classes: int = 100,
        new_head: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> None:
        student = build_network(network, num_classes, branches=False)
        weight_files = load_initial("weights", weights, student, new_head)
        super().__init__([student], ensemble=None, **options)
        self.weight_files = weight_files
