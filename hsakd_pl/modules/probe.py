"""Linear probe: how good a frozen network's features are on other data (Sec. 4.5, transfer)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.base import Batch, HSAKDModule
from hsakd_pl.modules.build import build_network, freeze, not_by_name


class ProbeNetwork(nn.Module):
    """A frozen backbone up to its last linear layer, and a fresh classifier; images (B, 3, S, S) -> logits (B, N)."""

    def __init__(self, features: nn.Module, classifier: nn.Linear, num_classes: int) -> None:
        super().__init__()
        self.features, self.classifier, self.num_classes = features, classifier, num_classes

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.classifier(features)


class LinearProbeModule(HSAKDModule):
    """Cross-entropy of a fresh classifier of ``num_classes``; nothing of the backbone moves, BN statistics included.

    ``network``: a registry name, with the ``weights`` file of a distilled network of ``source_classes`` classes, or a
    network, of which a copy is made. Defaults: the paper's recipe, no rotation and no weight decay.
    """

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        weights: str | None = None,
        source_classes: int = 100,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        milestones: Sequence[int] = (30, 60, 90),
        **kwargs: Any,
    ) -> None:
        built = build_network(network, source_classes, weights, branches=False)
        features = freeze(deepcopy(getattr(built, "backbone", built)))
        linears = [name for name, layer in features.named_modules() if isinstance(layer, nn.Linear)]
        if not linears:
            raise UsageError(f"network: {type(features).__name__} has no linear layer that a probe could replace")
        parent, _, name = linears[-1].rpartition(".")
        replaced = getattr(features.get_submodule(parent), name)
        setattr(features.get_submodule(parent), name, nn.Identity())
        classifier = nn.Linear(replaced.in_features, num_classes, dtype=replaced.weight.dtype)
        probe = ProbeNetwork(features, classifier, num_classes)
        kwargs |= {"lr": lr, "weight_decay": weight_decay, "milestones": milestones}
        super().__init__([probe], {"loss_ce": 1.0}, num_classes, **kwargs)
        self.save_hyperparameters(ignore=not_by_name(network=network))
        self.frozen = (features,)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss_ce": F.cross_entropy(self(images), labels)}
