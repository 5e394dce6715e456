"""Test that networks of users' own code train, distil and are measured like the package's own."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from small import BATCH, CLASSES, Losses, loader, trainer
from torch import Tensor

from hsakd_pl import BaselineModule, StudentModule, create_network


class Flattened(nn.Module):
    """Flatten maps by ``view``, as most code of before 2020 does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8 * 4 * 4, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return self.classifier(features.view(features.size(0), -1))


class Viewed(nn.Module):
    """Flatten maps by ``view`` in training steps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        if self.training:
            return self.fc(features.view(len(images), -1))
        return self.fc(features.flatten(1))


class Volumes(nn.Module):
    """Take an image as a volume of depth 3: the weight of its convolution has five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images[:, None]).relu().mean((2, 3, 4)))


class Strided(nn.Module):
    """Read the memory of its maps, so that another layout gives other logits without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.fc(features.as_strided((len(images), 8 * 8 * 8), (8 * 8 * 8, 1)))


class Wide(nn.Module):
    """Flatten the maps of a convolution that the package's kernels compute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv2(self.norm(self.conv(images)).relu())
        return self.fc(features.view(len(images), -1))


LAYOUTS: list[type[nn.Module]] = [Flattened, Viewed, Volumes, Strided, Wide]


def fitted(module: pl.LightningModule, **options: Any) -> list[float]:
    """Return the losses of a fit of two steps."""
    losses = Losses()
    images = BATCH[0].repeat(16, 1, 1, 1)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, BATCH[1].repeat(16)), batch_size=len(images) // 2
    )
    torch.manual_seed(0)
    trainer(callbacks=[losses], **options).fit(module, batches, batches)
    return losses.values


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("network", LAYOUTS)
def test_network_that_needs_contiguous_maps_trains_and_teaches(network: type[nn.Module], role: str) -> None:
    def losses(fast: bool) -> list[float]:
        torch.manual_seed(1)
        if role == "student":
            return fitted(BaselineModule(network(), num_classes=CLASSES, fast=fast))
        student = create_network("resnet8", CLASSES, branches=False)
        return fitted(StudentModule(student, network(), num_classes=CLASSES, joint_kd_weight=0, fast=fast))

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-5)
