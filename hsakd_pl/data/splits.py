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


def check_class_names(names: Any, num_classes: int, where: str | Path) -> list[str]:
    """The names as a list; raises UsageError, naming ``where`` they come from, unless each class has one, a text."""
    listed = isinstance(names, list | tuple | np.ndarray)
    if not listed or len(names) != num_classes or not all(isinstance(name, str) and "\0" not in name for name in names):
        found = f"{type(names).__name__} of {len(names)}" if listed else type(names).__name__
        raise UsageError(f"{where} gives class names as a {found}, not as a list of {num_classes} texts: complete it")
    return [str(name) for name in names]
