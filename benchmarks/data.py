"""Images out of a random number generator, in the form of CIFAR-100, so that speed needs no data set."""

from typing import Any

import torch

from hsakd_pl import CIFAR100DataModule
from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.splits import Split


class SyntheticDataModule(ImageDataModule):
    """Noise in 100 classes, augmented, batched and normalised as CIFAR-100 is.

    ``images``: size of the training split; the test split has a hundredth of it.
    """

    num_classes = CIFAR100DataModule.num_classes
    image_size = CIFAR100DataModule.image_size
    mean, std = CIFAR100DataModule.mean, CIFAR100DataModule.std
    train_transform = CIFAR100DataModule.train_transform

    def __init__(self, images: int = 50_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images = images

    def read(self, train: bool) -> Split:
        count = self.images if train else max(1, self.images // 100)
        generator = torch.Generator().manual_seed(int(train))
        shape = (count, 3, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(self.num_classes, (count,), generator=generator))
