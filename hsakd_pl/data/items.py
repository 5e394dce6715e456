"""Take pictures and labels from any map-style data set."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2.functional import to_pil_image

from hsakd_pl.data.fetched import Picture, Pictures, Source
from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError

# Attributes in which data sets keep the labels of their items, or pairs of a file and a label
LABELS = ("targets", "labels", "_labels", "y", "samples", "_samples", "index")
COMPARED = 8  # items whose labels are compared with those of such an attribute


@dataclass(frozen=True)
class Items:
    """Fetch the pictures of a map-style data set.

    Args:
        dataset: returns (picture, label) for an index.
    """

    dataset: Any

    def __call__(self, indices: list[int]) -> list[Source]:
        return [self.picture(index) for index in indices]

    def picture(self, index: int) -> Source:
        """Return the picture of an item; raise UsageError if it is none."""
        picture, _, name = item_of(self.dataset, index)
        if isinstance(picture, str | os.PathLike):
            return str(picture)
        return Picture(as_image(picture, name), name)


def item_of(dataset: Any, index: int) -> tuple[Any, Any, str]:
    """Return the picture, the label and the name of an item; raise UsageError if its file is broken or missing.

    It is also raised if the item is not a pair.
    """
    name = f"{type(dataset).__name__}[{index}]"
    try:
        item = dataset[index]
    except (OSError, SyntaxError) as error:  # the latter is Pillow's of a broken PNG
        raise UsageError(f"{name} cannot be read ({error}): replace or remove its file") from error
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1], name
    if isinstance(item, dict):
        raise UsageError(
            f"{name} is a dictionary of {', '.join(map(str, item))}: return (picture, label); HubDataModule reads the "
            "data sets of Hugging Face, also those that save_to_disk wrote"
        )
    raise UsageError(f"{name} is a {type(item).__name__}: return a pair (picture, label)")


def as_image(picture: Any, name: str) -> Image.Image:
    """Return a picture as an image of PIL; raise UsageError for anything else than Split.from_dataset states."""
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, Tensor | np.ndarray):
        raise UsageError(
            f"{name} has a {type(picture).__name__} as picture: return a PIL image, uint8 pixels or a path"
        )
    is_tensor = isinstance(picture, Tensor)
    channels = 0 if is_tensor else -1
    has_channels = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[channels] in (1, 3))
    if picture.dtype not in (torch.uint8, np.uint8) or not has_channels:
        layout = "(C, H, W)" if is_tensor else "(H, W, C)"
        raise UsageError(
            f"{name} has a picture of {picture.dtype} {tuple(picture.shape)}, not uint8 {layout} with 1 or 3 channels: "
            "leave out ToTensor, ToDtype and Normalize, since the data module resizes, augments and normalises"
        )
    return to_pil_image(picture)


def pictures_and_labels(dataset: Any, labels: Any = None) -> tuple[Pictures, Tensor]:
    """Return the pictures and labels (N,) of a map-style data set; see :meth:`hsakd_pl.data.Split.from_dataset`."""
    name = type(dataset).__name__
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(f"{name} is not a map-style data set, with a length and items by their index")
    found = labels_of(dataset) if labels is None else integers(labels, len(dataset))
    if found is None:
        raise UsageError(f"labels of {name} are not {len(dataset):,} integers")
    return Pictures(Items(dataset), np.arange(len(dataset))), found


def labels_of(dataset: Any) -> Tensor:
    """Return the labels (N,) of a map-style data set, of an attribute that agrees with its items, or of all items.

    Raises UsageError if a label is not an integer.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    count = len(dataset)
    compared = [position * count // COMPARED for position in range(COMPARED)] if count else []
    expected = {index: label_of(dataset, index) for index in compared}
    for name in LABELS:
        labels = integers(getattr(dataset, name, None), count)
        if labels is not None and all(labels[index] == label for index, label in expected.items()):
            return labels
    indices = tracked(range(count), count, f"Reading the labels of {type(dataset).__name__}")
    return torch.tensor([label_of(dataset, index) for index in indices], dtype=torch.int64)


def label_of(dataset: Any, index: int) -> int:
    """Return the label of an item; raise UsageError if it is not an integer."""
    _, label, name = item_of(dataset, index)
    value = label.item() if isinstance(label, Tensor | np.ndarray) and label.ndim == 0 else label
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(
            f"{name} has a {type(value).__name__} as label: return integers from 0, in the order of classes"
        )
    return int(value)


def integers(values: Any, count: int) -> Tensor | None:
    """Return ``count`` integers, or those of as many pairs with one integer, as a tensor; None for anything else."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return None
    numbers = list(_numbers(values))
    return torch.tensor(numbers, dtype=torch.int64) if len(numbers) == count else None


def _numbers(values: Sequence[Any]) -> Iterator[int]:
    """Yield the integer of each value, which is one or a pair that has one, up to the first value without."""
    for value in values:
        candidates = [value] if not isinstance(value, tuple | list) else value if len(value) == 2 else []
        found = [part for part in candidates if isinstance(part, int | np.integer) and not isinstance(part, bool)]
        if len(found) != 1:
            return
        yield int(found[0])
