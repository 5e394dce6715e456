"""What a frozen network makes of a data set's images, as a data set of its own."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.description import Description
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.progress import tracked
from hsakd_pl.data.sources import ResidentTensors
from hsakd_pl.errors import UsageError


class FeatureDataModule(pl.LightningDataModule):
    """Batches of features (B, D) with labels (B,), computed once for each split when they are first asked for.

    Args:
        images: the data set; to train on its features, ``augment`` must be off.
        encode: makes features (B, D) of normalised images (B, 3, S, S), such as :meth:`LinearProbeModule.encode`.
    """

    def __init__(self, images: ImageDataModule, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.images, self.encode = images, encode
        self.num_classes = images.num_classes
        self._features: dict[str, Tensor] = {}

    @property
    def description(self) -> Description:
        """Of the images."""
        return self.images.description

    @property
    def batch_size(self) -> int:
        """Of the data set: samples of all devices together."""
        return self.images.batch_size

    def prepare_data(self) -> None:
        """Obtain the images where that is asked for."""
        self.images.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the images that ``stage`` needs."""
        self.images.trainer = self.trainer
        self.images.setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """That of the images."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the images theirs back."""
        self.images.load_state_dict(state_dict)

    @torch.no_grad()
    def features(self, split: str) -> Tensor:
        """Features (N, D) of a split's images without augmentation, on the trainer's device, all on every device."""
        if split not in self._features:
            self.images.trainer = self.trainer
            device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
            batches = self.images.plain_loader(self.images.splits[split], everywhere=True)
            shown = tracked(batches, len(batches), f"Encoding the {split} images")
            inputs = (self.images.on_after_batch_transfer((images.to(device), None), 0)[0] for images, _ in shown)
            self._features[split] = torch.cat([self.encode(images) for images in inputs])
        return self._features[split]

    def targets(self, split: str) -> Tensor:
        """Labels (N,) of a split."""
        return self.images.splits[split].targets

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of the training split's features; UsageError where its images are augmented."""
        if self.images.augment:
            raise UsageError("features are made once of each image: set augment to false, or train on the images")
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the validation split's features, each sample once over all devices."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split's features, each sample once over all devices."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Images below ``predict_dir``, as the data set gives them."""
        return self.images.predict_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise images; features pass through untouched."""
        return self.images.on_after_batch_transfer(batch, dataloader_idx)

    def _loader(self, split: str, shuffle: bool = False) -> ResumableLoader:
        features = self.features(split)
        resident = ResidentTensors(features, self.targets(split).to(features.device))
        return ResumableLoader(resident.make_batches, self.images.make_sampler(len(features), shuffle))
