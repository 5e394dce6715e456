"""Linear probe: the quality of a frozen network's features on other data (Sec. 4.5, transfer)."""

from collections.abc import Sequence
from itertools import chain

import pytorch_lightning as pl
import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.data import FeatureDataModule, ImageDataModule
from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_trained
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.options import SharedOptions
from hsakd_pl.networks import Network
from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.weights import describe
from hsakd_pl.signatures import Unpack


def remove_head(network: Network) -> Tensor:
    """Replace the layers that return a network's class logits by identities; return the weight of one of them.

    Raises UsageError for a head that is neither a linear layer nor a 1x1 convolution.
    """
    layers = dict(network.named_modules())
    paths = [*chain(*network.output_layers[:1])]
    weights = [getattr(layers.get(path), "weight", None) for path in paths]
    matrices = [w for w in weights if isinstance(w, Tensor) and w.dim() > 1 and w[0].numel() == w.shape[1]]
    if not paths or len(matrices) < len(paths):
        raise UsageError(f"network: {describe(network)} has no linear layer that a probe could replace: probe another")
    if len({weight.shape[1] for weight in matrices}) > 1:
        raise UsageError(f"network: the heads of {describe(network)} read embeddings of several widths: probe another")
    for path in paths:
        network.set_submodule(path, nn.Identity())
    network.num_classes = matrices[0].shape[1]  # it returns embeddings from now on
    return matrices[0]


class ProbeNetwork(Network):
    """A copy of a network without its last linear layer, ``features``, and a fresh classifier of N classes.

    Images (B, C, S, S), or their features (B, D), -> logits (B, N).
    """

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__(num_classes)
        self.in_channels = network.in_channels
        self.features = copied(network)
        replaced = remove_head(self.features)
        self.classifier = nn.Linear(replaced.shape[1], num_classes, dtype=replaced.dtype)

    def forward(self, images: Tensor) -> Tensor:
        features = images if images.dim() == 2 else self.encode(images)
        return self.classifier(features)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, S, S)."""
        return self.features(images)


class LinearProbeModule(HSAKDModule):
    """Minimise the cross-entropy of a new classifier on a frozen network, whose BatchNorm statistics are fixed too.

    Without rotation and weight decay, as published. If the data are not augmented, features can be computed once:
    ``fit(probe, FeatureDataModule(data, probe.encode))`` trains on the features that :meth:`encode` returns.

    Source: Yang et al., IJCAI 2021.

    Args:
        network: name (see :func:`hsakd_pl.create_network`) or network, which is copied.
        num_classes: number of classes of the probed data.
        weights: weight file of the network, ``pretrained`` for the weights that timm publishes, or ``random``; its last
            layer may have any width.
        source_classes: number of classes of the network.
        knn: number of nearest neighbours (cosine distance, among the training images) whose vote is logged as
            ``val/knn_acc``; 0 leaves it out. It needs a data module of the package.
        network_normalisation: normalise the images as those that the network was trained on, if ``weights`` say how;
            otherwise as the probed data are.
        lr: learning rate of SGD.
        weight_decay: weight decay of SGD.
        milestones: epochs, counted after the warm-up, at which ``lr`` is divided by 10.
        channels: number of channels of the images that a network given by name, or any other ``nn.Module``, takes.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: for a network given by name without ``weights``, for a network without a linear head, and for a
            negative ``knn``.

    Examples:
        >>> network = create_network("resnet8", num_classes=100)  # a trained one
        >>> probe = LinearProbeModule(network, num_classes=10)
        >>> probe.encode(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 64])
    """

    is_probe = True
    keeps_classes = False
    knn_accuracy: float | None = None

    def __init__(
        self,
        network: str | nn.Module,
        num_classes: int,
        weights: str | None = None,
        source_classes: int = 100,
        knn: int = 0,
        network_normalisation: bool = True,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        milestones: Sequence[int] = (30, 60, 90),
        channels: int = 3,
        **options: Unpack[SharedOptions],
    ) -> None:
        require_trained("weights", network, weights)
        probed = build_network(network, source_classes, branches=False, channels=channels)
        weight_files = load_initial("weights", weights, probed, new_head=None)
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
        self.network_normalisation = network_normalisation

    def encode(self, images: Tensor) -> Tensor:
        """Return the frozen network's features (B, D) of normalised images (B, 3, S, S)."""
        self._prepare()
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

        from sklearn.neighbors import KNeighborsClassifier  # slow to import

        train_features = data.features("train").float().cpu()
        val_features = data.features("val").float().cpu()
        neighbours = KNeighborsClassifier(min(self.knn, len(train_features)), metric="cosine")
        neighbours.fit(train_features, data.targets("train"))
        return float(neighbours.score(val_features, data.targets("val")))
