"""A split of a data set, and stratified parts of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

from hsakd_pl.errors import UsageError


class Split(NamedTuple):
    """Images with what belongs to them, in a fixed order.

    ``images``: uint8 (N, 3, H, W), or N paths of files; ``targets``: int64 labels (N,), or anything to hand
    through, such as the paths.
    """

    images: Tensor | list[str]
    targets: Tensor | list[str]

    def take(self, indices: Sequence[int]) -> "Split":
        """The samples at ``indices``, in that order."""
        images, targets = (
            part[torch.as_tensor(indices, dtype=torch.int64)] if isinstance(part, Tensor) else [part[i] for i in indices]
            for part in self
        )
        return Split(images, targets)


def stratified_indices(labels: Tensor, held_out: float, seed: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) with the classes in proportion: scikit-learn's StratifiedShuffleSplit, one split.

    Raises UsageError naming ``option`` if a side would be left without a sample of some class.
    """
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
    num_classes = len(labels.unique())
    try:
        kept, held = next(splitter.split(np.zeros(len(labels)), labels.numpy()))
    except ValueError as error:
        raise UsageError(f"{option} does not fit {len(labels)} samples of {num_classes} classes: {error}") from error
    for side in (kept, held):
        if (present := len(labels[side].unique())) < num_classes:
            raise UsageError(
                f"{option} leaves {num_classes - present} of {num_classes} classes without a sample: "
                f"choose a fraction that gives every class at least one on both sides"
            )
    return kept, held
