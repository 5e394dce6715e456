"""Splits of a data set, stratified parts of them, and checks of what data sets and loaders return."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hsakd_pl.data.fetched import Pictures
from hsakd_pl.data.items import pictures_and_labels
from hsakd_pl.data.walk import canonical
from hsakd_pl.errors import UsageError, counted

Indices = np.ndarray | list[int]
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Split(NamedTuple):
    """Hold images with their labels, in a fixed order.

    Args:
        images: uint8 images (N, C, H, W), or float images that are normalised already, or N paths of files, or
            :class:`Pictures` of a table or data set.
        targets: int64 labels (N,), or for prediction the list of paths.

    Examples:
        >>> split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> split.take([3, 0]).targets
        tensor([1, 0])
    """

    images: Tensor | list[str] | Pictures
    targets: Any

    @classmethod
    def from_dataset(cls, dataset: Any, labels: Any = None) -> "Split":
        """Return the split of a map-style data set whose items are pairs of a picture and a label.

        Pictures are paths, PIL images, uint8 tensors (C, H, W) or uint8 arrays (H, W, C), with 1 or 3 channels and no
        random transforms, since the data module augments; they stay in the data set and are fetched in every epoch.

        Args:
            dataset: has a length and returns (picture, label) for an index.
            labels: integers (N,); by default those of the attribute ``targets`` or ``labels`` if it agrees with items,
                otherwise those of all items, which are then opened once.

        Returns:
            Split with the pictures in the order of the data set.

        Raises:
            UsageError: for other items.

        Examples:
            >>> from torchvision.datasets import FakeData
            >>> Split.from_dataset(FakeData(size=4, num_classes=2)).targets.shape
            torch.Size([4])
        """
        return cls(*pictures_and_labels(dataset, labels))

    def take(self, indices: Indices) -> "Split":
        """Select the samples at ``indices``, in that order.

        Args:
            indices: integers (n,).

        Returns:
            Split of n samples.

        Examples:
            >>> Split(["a.png", "b.png"], torch.tensor([0, 1])).take([1]).images
            ['b.png']
        """
        return Split(_take(self.images, indices), _take(self.targets, indices))


def _take(items: Any, indices: Indices) -> Any:
    if isinstance(items, Pictures):
        return items.take(indices)
    if isinstance(items, Tensor):
        return items[torch.as_tensor(indices, dtype=torch.int64)]
    return [items[index] for index in indices]


def stratified_indices(labels: Tensor, held_out: float, seed: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (kept, held out) with the classes in proportion, by scikit-learn's StratifiedShuffleSplit.

    Args:
        labels: labels (N,).
        held_out: fraction to hold out.
        seed: seed of the division.
        option: option and value to name in errors.

    Raises UsageError if a part would lack samples of a class.
    """
    from sklearn.model_selection import StratifiedShuffleSplit  # slow to import

    splitter = StratifiedShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
    num_classes = len(labels.unique())
    try:
        parts = next(splitter.split(np.zeros(len(labels)), labels.numpy()))
    except ValueError as error:
        message = f"{option} does not fit {counted(len(labels), 'sample')} of {counted(num_classes, 'class')}: {error}"
        raise UsageError(message) from error
    for indices in parts:
        num_missing = num_classes - len(labels[indices].unique())
        if num_missing:
            raise UsageError(
                f"{option} leaves {num_missing} of {counted(num_classes, 'class')} without a sample: "
                "choose a fraction that gives every class at least one in both parts"
            )
    kept_indices, held_out_indices = parts
    return kept_indices, held_out_indices


def check_split(split: Any, num_classes: int, where: str, channels: int = 3) -> Split:
    """Return a split with its labels as int64; raise UsageError for other content than described below.

    Images are uint8 or finite floating point (N, channels, H, W), N paths or Pictures; labels are N integers from 0 to
    num_classes - 1.

    Args:
        split: what a data set returned.
        num_classes: number of classes.
        where: name of the function that returned it, for errors.
        channels: number of channels of the images.
    """
    if not isinstance(split, Split):
        raise UsageError(f"{where} returned a {type(split).__name__}: return Split(images, labels)")
    images, labels = split
    if isinstance(images, Tensor):
        _check_pixels(images, where, channels)
    elif not isinstance(images, Pictures) and not _are_paths(images):
        raise UsageError(f"{where} returned images that are neither a tensor nor a list of str: use str(path)")
    if 0 in (images.shape if isinstance(images, Tensor) else [len(images)]):
        raise UsageError(f"{where} returned no images: check that the data set is complete")
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS or labels.shape != (len(images),):
        raise UsageError(
            f"{where} returned {counted(len(images), 'image')} with labels of {_described(labels)}: return an integer "
            f"tensor ({len(images)},)"
        )
    smallest = int(labels.min())
    largest = int(labels.max())
    if smallest < 0 or largest >= num_classes:
        raise UsageError(
            f"{where} returned labels from {smallest} to {largest}: num_classes={num_classes} needs labels "
            f"0..{num_classes - 1}"
        )
    return split._replace(targets=labels.long())


def _are_paths(images: Any) -> bool:
    return isinstance(images, list) and all(issubclass(kind, str) for kind in set(map(type, images)))


def _check_pixels(images: Tensor, where: str, channels: int) -> None:
    """Raise UsageError unless images are uint8 or finite floating point (N, channels, H, W)."""
    is_pixels = images.is_floating_point() or images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[1] != channels or not is_pixels:
        raise UsageError(
            f"{where} returned images of {_described(images)}, not uint8 or floating point (N, {channels}, H, W): "
            f"state their number of channels in the attribute channels, use .expand(-1, {channels}, -1, -1) for grey "
            "images, .permute(0, 3, 1, 2) if channels are last, and .to(torch.uint8) for other integers from 0 to 255"
        )
    # the sum is one pass without a copy
    if images.is_floating_point() and not images.sum(dtype=torch.float64).isfinite():
        raise UsageError(f"{where} returned images of {_described(images)} with NaN or inf: repair or remove them")


def check_batch(batch: Any, num_classes: int, dtype: str | torch.dtype, wait: bool, channels: int = 3) -> None:
    """Raise UsageError unless a network can train on a batch.

    It must be a pair of normalised floating point images (B, channels, H, W) and int64 labels (B,) from 0 to
    num_classes - 1.

    Args:
        batch: what a loader returned.
        num_classes: number of classes of the network.
        dtype: dtype of the network.
        wait: check labels on an accelerator too, which waits for its work to finish.
        channels: number of channels that the network takes.
    """
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch):
        types = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise UsageError(f"the loader returns {types}, not tensors (images, labels): select them in its collate_fn")
    images, labels = batch
    check_normalised_images(images, dtype, channels)
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise UsageError(
            f"the loader returns labels of {_described(labels)}, not torch.int64 ({len(images)},): return one "
            "class per image"
        )
    may_look = wait or labels.device.type == "cpu"
    if may_look and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UsageError(
            f"the loader returns labels from {labels.min()} to {labels.max()}, but the network has {num_classes} "
            f"classes, 0..{num_classes - 1}: set num_classes, or number the classes from 0"
        )


def check_normalised_images(images: Tensor, dtype: str | torch.dtype, channels: int = 3) -> None:
    """Raise UsageError unless a loader's images are normalised floating point (B, channels, H, W) of ``dtype``."""
    description = f"images of {_described(images)}"
    if images.dtype == torch.uint8:
        raise UsageError(
            f"the loader returns {description}, which only data modules normalise: end its transform with "
            "v2.ToDtype(torch.float32, scale=True) and v2.Normalize(mean, std), or use ImageFolderDataModule"
        )
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise UsageError(
            f"the loader returns {description}, not floating point (B, {channels}, H, W): fix its transform, or create "
            "the network for other channels"
        )
    if images.dtype == torch.float64 != dtype:
        raise UsageError(f"the loader returns {description}, but the network is {dtype}: use images.float()")


def _described(value: Any) -> str:
    """Return the dtype and shape of a tensor, or the type of anything else."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_class_names(names: Any, num_classes: int, where: str | Path) -> list[str]:
    """Return class names as a list, in Unicode's form NFC.

    Raises UsageError, naming their origin, unless each class has one string.
    """
    if not isinstance(names, list | tuple | np.ndarray):
        description = type(names).__name__
    elif len(names) != num_classes or not all(isinstance(name, str) and "\0" not in name for name in names):
        description = f"{type(names).__name__} of {len(names)}"
    else:
        return [canonical(str(name)) for name in names]
    raise UsageError(f"{where} gives class names as a {description}, not as a list of {num_classes} strings: fix it")
