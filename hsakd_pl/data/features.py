"""Serve the features that a frozen network computes from a data set's images, as a data set."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.description import Description
from hsakd_pl.data.fingerprint import SplitFacts
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.progress import tracked
from hsakd_pl.data.sources import ResidentTensors
from hsakd_pl.errors import UsageError


class FeatureDataModule(pl.LightningDataModule):
    """Serve batches of features (B, D) with labels (B,); the features of a split are computed once, on first use.

    Args:
        images: data set; to train on its features, its ``augment`` must be off.
        encode: computes features (B, D) from normalised images (B, C, S, S), such as
            :meth:`LinearProbeModule.encode`.

    Examples:
        >>> images = DigitsDataModule(augment=False)
        >>> probe = LinearProbeModule(create_network("resnet8"), num_classes=10)
        >>> data = FeatureDataModule(images, probe.encode)
        >>> data.num_classes
        10
        >>> trainer.fit(probe, data)  # doctest: +SKIP
    """

    def __init__(self, images: ImageDataModule, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.images = images
        self.encode = encode
        self.num_classes = images.num_classes
        self.channels = images.channels
        self._features: dict[str, Tensor] = {}

    @property
    def description(self) -> Description:
        """Return the description of the images."""
        return self.images.description

    @property
    def facts(self) -> dict[str, SplitFacts]:
        """Return what identifies the images of each split that was read."""
        return self.images.facts

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of the images by split."""
        return self.images.fingerprints

    @property
    def batch_size(self) -> int:
        """Return the batch size of the data set: samples of all devices together."""
        return self.images.batch_size

    def prepare_data(self) -> None:
        """Download the images if the data set is set to do so."""
        self.images.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the images that ``stage`` needs."""
        self.images.trainer = self.trainer
        self.images.setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the images' data module."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the images' data module."""
        self.images.load_state_dict(state_dict)

    @torch.no_grad()
    def features(self, split: str) -> Tensor:
        """Return features (N, D) of a split's images without augmentation, all of them on every device."""
        if split not in self._features:
            self.images.trainer = self.trainer
            device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
            loader = self.images.plain_loader(self.images.splits[split], on_every_device=True)
            features = []
            for images, labels in tracked(loader, len(loader), f"Encoding the {split} images"):
                normalised, _ = self.images.on_after_batch_transfer((images.to(device), labels), 0)
                features.append(self.encode(normalised))
            self._features[split] = torch.cat(features)
        return self._features[split]

    def targets(self, split: str) -> Tensor:
        """Return the labels (N,) of a split."""
        return self.images.splits[split].targets

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches of the training split's features; raise UsageError if its images are augmented."""
        if self.images.augment:
            raise UsageError("features are computed once per image: set augment to false, or train on the images")
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """Return batches of the validation split's features; each sample is on exactly one device."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Return batches of the test split's features; each sample is on exactly one device."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Return batches of the images below ``predict_dir``."""
        return self.images.predict_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise images; leave features unchanged."""
        return self.images.on_after_batch_transfer(batch, dataloader_idx)

    def _loader(self, split: str, shuffle: bool = False) -> ResumableLoader:
        features = self.features(split)
        source = ResidentTensors(features, self.targets(split).to(features.device))
        return ResumableLoader(source, self.images.make_sampler(len(features), shuffle))
