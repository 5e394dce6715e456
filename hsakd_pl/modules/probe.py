"""Linear probe: how good a frozen network's features are on other data (Sec. 4.5, transfer)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from hsakd_pl.data import ImageDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.modules.base import Batch, HSAKDModule
from hsakd_pl.modules.build import build_network, freeze, not_by_name


class ProbeNetwork(nn.Module):
    """A frozen backbone up to its last linear layer, and a fresh classifier of N classes.

    Images (B, 3, S, S), or their features (B, D), -> logits (B, N).
    """

    def __init__(self, features: nn.Module, classifier: nn.Linear, num_classes: int) -> None:
        super().__init__()
        self.features, self.classifier, self.num_classes = features, classifier, num_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images if images.dim() == 2 else self.encode(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, S, S)."""
        return self.features(images)


class LinearProbeModule(HSAKDModule):
    """Cross-entropy of a fresh classifier of ``num_classes``; nothing of the backbone moves, BN statistics included.

    ``network``: a registry name, with the ``weights`` file of a distilled network of ``source_classes`` classes, or a
    network, of which a copy is made. Defaults: the paper's recipe, no rotation and no weight decay.
    ``cache_features``: the backbone sees every image once, then the classifier trains on what it made of them; only
    for data with ``augment`` off. ``knn``: accuracy of that many nearest neighbours (cosine) among the training images
    beside the classifier's, as ``val/knn_acc``; 0 leaves it out. Both need an ImageDataModule.
    """

    knn_accuracy: float | None = None

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        weights: str | None = None,
        source_classes: int = 100,
        cache_features: bool = False,
        knn: int = 0,
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
        self.cache_features, self.knn = cache_features, knn

    def on_fit_start(self) -> None:
        """Encode the images, where that is asked for; UsageError if it does not go with the data."""
        super().on_fit_start()
        if not (self.cache_features or self.knn):
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UsageError("cache_features and knn need the images of an ImageDataModule: pass fit(datamodule=...)")
        if self.cache_features and data.augment:
            raise UsageError("cache_features takes each image once: set data.init_args.augment false, or leave it out")
        self._pin_frozen()
        probe = cast(ProbeNetwork, self.network)
        splits = {name: data.splits[name] for name in ("train", "val")}
        features = {name: data.encode(split, probe.encode) for name, split in splits.items()}
        if self.knn:
            vote = KNeighborsClassifier(min(self.knn, len(features["train"])), metric="cosine")
            vote.fit(features["train"].float().cpu(), splits["train"].targets)
            self.knn_accuracy = float(vote.score(features["val"].float().cpu(), splits["val"].targets))
        if self.cache_features:
            data.splits |= {name: split._replace(images=features[name]) for name, split in splits.items()}

    def on_validation_epoch_end(self) -> None:
        if self.knn_accuracy is not None:
            self.log("val/knn_acc", self.knn_accuracy)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss_ce": F.cross_entropy(self(images), labels)}
