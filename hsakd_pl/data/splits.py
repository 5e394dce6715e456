"""A split of a data set, and stratified parts of it."""

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

from hsakd_pl.errors import UsageError

Indices = np.ndarray | list[int]


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
