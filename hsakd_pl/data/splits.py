"""A split of a data set, and stratified parts of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

from hsakd_pl.errors import UsageError

Indices = np.ndarray | list[int]
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Split(NamedTuple):
    """Images with what belongs to them, in a fixed order.

    ``images``: uint8 (N, 3, H, W), or float where they are normalised already, or N paths of files; ``targets``: int64
    labels (N,), or for prediction the list of paths.
    """

    images: Tensor | list[str]
    targets: Any

    def take(self, indices: Indices) -> "Split":
        """The samples at ``indices``, in that order."""
        return Split(_take(self.images, indices), _take(self.targets, indices))


def _take(items: Any, indices: Indices) -> Any:
    if isinstance(items, Tensor):
        return items[torch.as_tensor(indices, dtype=torch.int64)]
    return [items[index] for index in indices]


def stratified_indices(labels: Tensor, held_out: float, seed: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) with the classes in proportion: scikit-learn's StratifiedShuffleSplit.

    Raises UsageError naming ``option`` if a side would be left without a sample of some class.
    """
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
    num_classes = len(labels.unique())
    try:
        kept, held = next(splitter.split(np.zeros(len(labels)), labels.numpy()))
    except ValueError as error:
        message = f"{option} does not fit {len(labels)} samples of {num_classes} classes: {error}"
        raise UsageError(message) from error
    for side in (kept, held):
        if (present := len(labels[side].unique())) < num_classes:
            raise UsageError(
                f"{option} leaves {num_classes - present} of {num_classes} classes without a sample: "
                f"choose a fraction that gives every class at least one on both sides"
            )
    return kept, held


def check_split(split: Any, num_classes: int, where: str) -> Split:
    """The split with its labels as int64; raises UsageError, naming ``where`` it comes from, for any other content.

    Images are uint8 or finite floating point (N, 3, H, W), or N paths; labels N integers from 0 to num_classes - 1.
    """
    if not isinstance(split, Split):
        raise UsageError(f"{where} gave a {type(split).__name__}: it must return Split(images, labels)")
    images, labels = split
    if isinstance(images, Tensor):
        found, floating = f"images of {images.dtype} {tuple(images.shape)}", images.is_floating_point()
        if images.ndim != 4 or images.shape[1] != 3 or not (floating or images.dtype == torch.uint8):
            raise UsageError(
                f"{where} gave {found}, not uint8 or floating point (N, 3, H, W): grey ones need "
                f".expand(-1, 3, -1, -1), channels last .permute(0, 3, 1, 2), integers from 0 to 255 .to(torch.uint8)"
            )
        if floating and not images.sum(dtype=torch.float64).isfinite():  # one pass, no copy
            raise UsageError(f"{where} gave {found} with NaN or infinite pixels: repair or remove those")
    elif not (isinstance(images, list) and all(isinstance(path, str) for path in images)):
        raise UsageError(
            f"{where} gave images that are no tensor and no list of str: make them one, paths by str(path)"
        )
    if 0 in (images.shape if isinstance(images, Tensor) else [len(images)]):
        raise UsageError(f"{where} gave no image: check that the data set is complete")
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS or labels.shape != (len(images),):
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise UsageError(
            f"{where} gave {len(images)} images with labels of {found}: give as many, an integer tensor (N,)"
        )
    least, most = labels.min().item(), labels.max().item()
    if least < 0 or most >= num_classes:
        raise UsageError(
            f"{where} gave labels from {least} to {most}: num_classes={num_classes} needs 0..{num_classes - 1}"
        )
    return split._replace(targets=labels.long())


def check_batch(batch: Any, num_classes: int, dtype: str | torch.dtype, wait: bool) -> None:
    """Raise UsageError unless a batch is what a network of ``num_classes`` in ``dtype`` learns from.

    That is normalised floating point images (B, 3, H, W) with int64 labels (B,) from 0 to num_classes - 1, in a pair.
    Labels on a device other than the CPU are looked at only with ``wait``: it would have to finish its work first.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(each, Tensor) for each in batch)
    if not pair:
        found = [type(each).__name__ for each in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise UsageError(f"the loader gives {found}, not tensors (images, labels): choose them in its collate_fn")
    images, labels = batch
    found = f"images of {images.dtype} {tuple(images.shape)}"
    if images.dtype == torch.uint8:
        raise UsageError(
            f"the loader gives {found}, which only a data module normalises: end its transform with "
            "v2.ToDtype(torch.float32, scale=True) and v2.Normalize(mean, std), or take ImageFolderDataModule"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UsageError(f"the loader gives {found}, not floating point (B, 3, H, W): mend its transform")
    if images.dtype == torch.float64 != dtype:
        raise UsageError(f"the loader gives {found}, the network is {dtype}: take images.float()")
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise UsageError(f"the loader gives labels of {found}, not torch.int64 ({len(images)},): one class an image")
    if (wait or labels.device.type == "cpu") and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UsageError(
            f"the loader gives labels from {labels.min()} to {labels.max()}, the network has {num_classes} classes, "
            f"0..{num_classes - 1}: set num_classes, or number them from 0"
        )


def check_class_names(names: Any, num_classes: int, where: str | Path) -> list[str]:
    """The names as a list; raises UsageError, naming ``where`` they come from, unless each class has one, a text."""
    listed = isinstance(names, list | tuple | np.ndarray)
    if not listed or len(names) != num_classes or not all(isinstance(name, str) and "\0" not in name for name in names):
        found = f"{type(names).__name__} of {len(names)}" if listed else type(names).__name__
        raise UsageError(f"{where} gives class names as a {found}, not as a list of {num_classes} texts: complete it")
    return [str(name) for name in names]
