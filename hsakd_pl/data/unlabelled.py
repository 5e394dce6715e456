"""Images without labels: next to the labelled ones of a data set, or alone."""

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.loader import Batch, BatchSource
from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.data.seeding import SHUFFLING, UNLABELLED, derive_seed, seeded_generator
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import local_path, naming

STL10_SIDE = 96  # of the images in unlabeled_X.bin
STL10_BYTES = 3 * STL10_SIDE**2
IMAGES_AT_ONCE = 1024  # that are resized
NO_LABEL = -1  # as in torchvision's STL10

Unlabelled = str | Path | list[str] | pl.LightningDataModule


def unlabelled_split(images: Any) -> Split:
    """Return images as a split without labels."""
    return Split(images, torch.full((len(images),), NO_LABEL))


def read_unlabelled(source: Unlabelled) -> Split:
    """Return the images of a source, without labels.

    Args:
        source: folder, whose subfolders are searched too, image file, STL-10's ``unlabeled_X.bin``, a list of these, or
            a data module of this package, whose training images are taken.

    Raises UsageError for a source without images, and for another data module.
    """
    if isinstance(source, pl.LightningDataModule):
        training_images = getattr(source, "training_images", None)
        if training_images is None:
            raise UsageError(f"unlabelled: {type(source).__name__} is not a data module of this package: name a folder")
        images = training_images()
        if len(images) == 0:
            raise UsageError(f"unlabelled: {type(source).__name__} has no training images: choose other data")
        return unlabelled_split(images)
    sources = source if isinstance(source, list) else [source]
    paths = [local_path("unlabelled", entry) for entry in sources]
    binary = [path for path in paths if path.suffix == ".bin"]
    if binary and len(paths) > 1:
        raise UsageError(f"unlabelled: {binary[0]} cannot be joined with other sources: name it alone")
    if binary:
        return unlabelled_split(read_binary(binary[0]))
    found = chain.from_iterable(image_paths(path, "unlabelled") for path in paths)
    return unlabelled_split([*dict.fromkeys(found)])


def read_binary(file: Path) -> Tensor:
    """Return the images (N, 3, 96, 96) of STL-10's ``unlabeled_X.bin``, read from the file when they are used."""
    with naming(file):
        if not file.is_file():
            raise UsageError(f"unlabelled: {file} does not exist: check the path")
        size = file.stat().st_size
        if size == 0 or size % STL10_BYTES:
            raise UsageError(
                f"unlabelled: {file} has {size} bytes, not a multiple of {STL10_BYTES}, as STL-10's unlabeled_X.bin "
                "has: download it again"
            )
        pixels = np.memmap(file, np.uint8, "c")  # never written, but PyTorch asks for what could be
    columns_first = pixels.reshape(-1, 3, STL10_SIDE, STL10_SIDE)
    return torch.from_numpy(columns_first.transpose(0, 1, 3, 2))


def fitted(data: Any, split: Split) -> tuple[Any, Split]:
    """Return a copy of a data module that makes its training images of those of another source, and its split.

    Pictures are resized as for testing before CIFAR's augmentation, images in memory at once.
    """
    other = copy(data)
    other._decoded_images = []
    other.seed = derive_seed(data.seed or 0, UNLABELLED)
    images = split.images
    resizes = not isinstance(images, Tensor) or images.shape[2:] != (data.image_size, data.image_size)
    other.test_transform = data.description.transform if resizes else None
    augments_batches = isinstance(data.train_transform, PadCropFlip) or not data.augment
    if isinstance(images, Tensor) and resizes and augments_batches:
        transform = other.test_transform
        resized = torch.cat([transform(part) for part in images.split(IMAGES_AT_ONCE)])
        other.test_transform = None
        return other, split._replace(images=resized)
    return other, split


@dataclass(eq=False)
class UnlabelledSampler(GlobalBatchSampler):
    """Add unlabelled samples to each batch, as indices above those of the ``num_samples`` labelled ones.

    The unlabelled samples follow each other in random orders of all of them, from epoch to epoch, so that each is used
    once before any is used again. They depend on (seed, epoch).

    Args:
        pool: number of unlabelled samples.
        ratio: number of unlabelled samples for each labelled one in a batch.

    Examples:
        >>> sampler = UnlabelledSampler(num_samples=4, batch_size=2, shuffle=False, seed=0, pool=3, ratio=1.5)
        >>> [len(batch) for batch in sampler]
        [5, 5]
    """

    pool: int = 0
    ratio: float = field(default=1.0)

    def __iter__(self) -> Iterator[Tensor]:
        counts = [len(batch) for batch in self._global_batches()]
        more = [max(1, round(self.ratio * count)) for count in counts]
        added = self._unlabelled(sum(more)).split(more)
        for batch, indices in zip(super().__iter__(), added, strict=True):
            yield torch.cat([batch, self.num_samples + indices[self.rank :: self.world_size]])

    def _global_batches(self) -> Sequence[Tensor]:
        cuts = list(range(self.batch_size, len(self) * self.batch_size, self.batch_size))
        return self._order().tensor_split(cuts)

    def _unlabelled(self, count: int) -> Tensor:
        """Return the indices of this epoch's unlabelled samples (count,)."""
        seed = derive_seed(self.seed, UNLABELLED)
        first = self.epoch * count
        rounds = range(first // self.pool, (first + count - 1) // self.pool + 1)
        orders = [torch.randperm(self.pool, generator=seeded_generator(seed, SHUFFLING, number)) for number in rounds]
        start = first - rounds.start * self.pool
        return torch.cat(orders)[start : start + count]


@dataclass(eq=False)
class MixedBatches:
    """Batches of labelled images and, after them, unlabelled ones, with the labels (B,) of the former alone.

    Args:
        labelled: makes the batches of labelled images.
        unlabelled: makes those of the other images.
        num_labelled: number of labelled samples; greater indices are those of unlabelled ones.
    """

    labelled: BatchSource
    unlabelled: BatchSource
    num_labelled: int

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        labelled = [indices[indices < self.num_labelled] for indices in order]
        others = [indices[indices >= self.num_labelled] - self.num_labelled for indices in order]
        sources = self.labelled.make_batches(epoch, labelled), self.unlabelled.make_batches(epoch, others)
        for (images, labels), (more, _) in zip(*sources, strict=True):
            yield torch.cat([images, more.to(images.device, non_blocking=True)]), labels


def log_unlabelled(split: Split, ratio: float) -> None:
    """Log how many unlabelled images there are, and how many of them a batch has."""
    count = counted(len(split.targets), "unlabelled image")
    rank_zero_info(f"Training on {count} as well, {ratio:g} for each labelled one in a batch")


def is_named(unlabelled: Any, name: str) -> bool:
    """Return True for a keyword, unless a file of this name exists."""
    return unlabelled == name and not os.path.exists(name)
