"""A network trained alone."""

from collections.abc import Sequence
from typing import Any

import torch.nn as nn

from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, not_by_name
from hsakd_pl.modules.optimization import OptimizerMaker, Scheduler


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
        lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (150, 180, 210),
        warmup_epochs: int = 0,
        optimizer: OptimizerMaker | None = None,
        lr_scheduler: Scheduler | None = None,
        branch_metrics_every: int = 10,
        fast: bool = True,
        compile: bool | dict[str, Any] = False,
        backbone_lr: float | None = None,
        new_head: bool = False,
    ) -> None:
        student = build_network(network, num_classes, branches=False)
        weight_files = load_initial("weights", weights, student, new_head)
        super().__init__(
            [student],
            None,
            *(lr, momentum, nesterov, weight_decay, milestones, warmup_epochs, optimizer, lr_scheduler),
            *(branch_metrics_every, fast, compile, backbone_lr),
        )
        self.weight_files = weight_files
        self.save_hyperparameters(ignore=not_by_name(self, network=network))
