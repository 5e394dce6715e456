"""Linear probe: how good a frozen network's features are on other data (Sec. 4.5, transfer)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import pytorch_lightning as pl
import torch
import torch.nn as nn
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from hsakd_pl.data import FeatureDataModule, ImageDataModule
from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_trained
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.options import SharedOptions
from hsakd_pl.networks import Network
from hsakd_pl.networks.weights import describe
from hsakd_pl.signatures import Unpack


class ProbeNetwork(Network):
    """A copy of a network without its last linear layer, ``features``, and a fresh classifier of N classes.

    Images (B, 3, S, S), or their features (B, D), -> logits (B, N).
    """

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__(num_classes)
        self.features = deepcopy(network)
        linears = [name for name, layer in self.features.named_modules() if isinstance(layer, nn.Linear)]
        if not linears:
            raise UsageError(f"network: {describe(network)} has no linear layer that a probe could replace")
        replaced = cast(nn.Linear, self.features.get_submodule(linears[-1]))
        self.features.set_submodule(linears[-1], nn.Identity())
        self.classifier = nn.Linear(replaced.in_features, num_classes, dtype=replaced.weight.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images if images.dim() == 2 else self.encode(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Give the features (B, D) of images (B, 3, S, S)."""
        return self.features(images)


class LinearProbeModule(HSAKDModule):
    """Minimises the cross-entropy of a fresh classifier; nothing of the network moves, BN statistics included.

    Without rotation and weight decay, as published. Where data have ``augment`` off, each image is needed once:
    ``fit(probe, FeatureDataModule(data, probe.encode))`` trains on what :meth:`encode` made of them.

    Args:
        network: a name (:func:`hsakd_pl.create_network`), or a network, of which a copy is made.
        num_classes: of the data that are probed.
        weights: file of the network; ``pretrained`` for those that timm publishes, ``random`` for a fresh one.
        source_classes: how many classes that has.
        knn: accuracy of so many nearest neighbours (cosine) among the training images, beside the classifier's, as
            ``val/knn_acc``; it needs the package's data modules, 0 leaves it out.

    Other arguments: :class:`HSAKDModule`.
    """

    knn_accuracy: float | None = None

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        weights: str | None = None,
        source_classes: int = 100,
        knn: int = 0,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        milestones: Sequence[int] = (30, 60, 90),
        **options: Unpack[SharedOptions],
    ) -> None:
        require_trained("weights", network, weights)
        probed = build_network(network, source_classes, branches=False)
        weight_files = load_initial("weights", weights, probed)
        require(knn >= 0, "knn", knn, "at least 0")
        super().__init__(
            [ProbeNetwork(probed, num_classes)],
            lr=lr,
            weight_decay=weight_decay,
            milestones=milestones,
            backbone_lr=None,
            ensemble=None,
            **options,
        )
        self.weight_files = weight_files
        self.frozen.append(Frozen(self.networks[0].features))
        self.knn = knn

    def encode(self, images: Tensor) -> Tensor:
        """Give the frozen network's features (B, D) of normalised images (B, 3, S, S)."""
        self._guard()
        return self.networks[0].encode(images)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.knn:
            self.knn_accuracy = self._nearest_neighbours(getattr(self.trainer, "datamodule", None))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.knn_accuracy is not None:
            self.log("val/knn_acc", self.knn_accuracy)

    def _nearest_neighbours(self, data: pl.LightningDataModule | None) -> float:
        if isinstance(data, ImageDataModule):
            data = FeatureDataModule(data, self.encode)
            data.trainer = self.trainer
        if not isinstance(data, FeatureDataModule):
            raise UsageError("knn needs the images of an ImageDataModule: pass fit(datamodule=...), or set knn to 0")
        train, val = (data.features(split).float().cpu() for split in ("train", "val"))
        vote = KNeighborsClassifier(min(self.knn, len(train)), metric="cosine").fit(train, data.targets("train"))
        return float(vote.score(val, data.targets("val")))
