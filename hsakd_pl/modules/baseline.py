"""A network trained alone."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.modules.base import Batch, HSAKDModule, as_output
from hsakd_pl.modules.build import build_network, not_by_name


class BaselineModule(HSAKDModule):
    """Cross-entropy on unrotated images: "Student" in Table 1 of the paper.

    ``network``: a registry name, built without branches, or a network. ``weights``: file to start from.
    """

    def __init__(
        self, network: str | nn.Module, weights: str | None = None, num_classes: int = 100, **kwargs: Any
    ) -> None:
        built = build_network(network, num_classes, weights, branches=False)
        super().__init__([built], {"loss_ce": 1.0}, num_classes, **kwargs)
        self.save_hyperparameters(ignore=not_by_name(network=network))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss_ce": F.cross_entropy(as_output(self(images)).logits, labels)}
