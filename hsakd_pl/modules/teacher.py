"""A teacher that learns the self-supervised augmented task (Sec. 3.3, "Training the teacher network")."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.modules.base import Batch, HSAKDModule
from hsakd_pl.modules.build import build_network, freeze, not_by_name, with_branches
from hsakd_pl.ops import joint_cross_entropy, rotate


class TeacherModule(HSAKDModule):
    """CE(class logits of rotation 0, y) + sum over branches CE(joint logits of all rotations, 4y + r), Eq. 3 and 4.

    Jointly trained, the branches' gradients flow into the backbone ("HSAKD*" in Table 1). With ``freeze_backbone`` only
    the branches train: the backbone, whose ``weights`` are then given, never leaves eval mode ("HSAKD").
    """

    def __init__(
        self,
        network: str | nn.Module,
        freeze_backbone: bool = False,
        weights: str | None = None,
        num_classes: int = 100,
        ce_weight: float = 1.0,
        joint_ce_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        built = with_branches(build_network(network, num_classes, weights))
        loss_weights = {"loss_ce": ce_weight, "loss_joint_ce": joint_ce_weight}
        super().__init__([built], loss_weights, num_classes, **kwargs)
        self.save_hyperparameters(ignore=not_by_name(network=network))
        if freeze_backbone:
            self.frozen = (freeze(built.get_submodule("backbone")),)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        logits, joint_logits = self(rotate(images))
        return {
            "loss_ce": F.cross_entropy(logits[: len(labels)], labels),
            "loss_joint_ce": joint_cross_entropy(joint_logits, labels),
        }
