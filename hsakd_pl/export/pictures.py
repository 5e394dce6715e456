"""Load real images to verify, calibrate and test exported students on."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.data.images import open_image
from hsakd_pl.data.limits import images_per_pass, most_images
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import local_path

COMPARED_IMAGES = 32  # images whose logits are compared
CALIBRATION_IMAGES = 256  # images that determine the range of each layer


class Pictures(NamedTuple):
    """Images (B, C, S, S), uint8, and their origin in words."""

    images: Tensor
    origin: str


def batches_of(data: ImageDataModule, description: Description, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images (B, C, S, S) and labels (B,) of a split, without augmentation.

    Raises UsageError if the split is missing, of other classes, or normalised already.

    Args:
        data: data module.
        description: description of the student's data, whose classes and size the data must have.
        split: ``test``, or ``train``, which is shuffled.
    """
    data.adopt(description)
    data.setup("test" if split == "test" else "fit")
    yield from _labelled(data, data.splits[split], shuffle=split == "train")


def evenly_spaced(
    data: ImageDataModule, description: Description, most: int, name: str = "test"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of the test split as :func:`batches_of` does, or at most ``most`` evenly spaced images of it.

    Data sets are sorted by class, so that the first images would be those of a few classes. ``name`` may also be
    ``val``.
    """
    data.adopt(description)
    data.setup("test" if name == "test" else "validate")
    split = data.splits[name]
    count = len(split.targets)
    if count > most:
        split = split.take([number * count // most for number in range(most)])
    yield from _labelled(data, split, shuffle=False)


def _labelled(data: ImageDataModule, split: Split, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in data.plain_loader(split, shuffle=shuffle):
        assert isinstance(labels, Tensor), "splits to predict alone have paths"
        if images.dtype != torch.uint8:
            raise UsageError(f"{type(data).__name__} returns normalised images, but an exported student normalises")
        yield images, labels


def first_images(data: ImageDataModule, description: Description, split: str, count: int) -> Tensor:
    """Return the first ``count`` images of :func:`batches_of`, fewer where they are large."""
    count = min(count, most_images(description.image_size, description.channels))
    batch_count = math.ceil(count / data.batch_size)
    batches = [images for images, _ in islice(batches_of(data, description, split), batch_count)]
    if not batches:
        raise UsageError(f"{type(data).__name__}: the {split} split has no image: name other data")
    return torch.cat(batches)[:count]


def folder_pictures(folder: str | Path, description: Description, count: int) -> Pictures:
    """Return the first ``count`` images below a folder, at the student's size, fewer where that is large.

    Raises UsageError if there is none.
    """
    count = min(count, most_images(description.image_size, description.channels))
    paths = image_paths(local_path("images", folder), "images")[:count]
    opened = (open_image(path, description.resize, channels=description.channels) for path in paths)
    images = torch.stack([description.transform(picture) for picture in opened])
    return Pictures(images, f"{counted(len(images), 'image')} of {folder}")


def sample_pictures(description: Description, count: int) -> Pictures:
    """Return ``count`` parts of scikit-learn's two photographs, at the student's size.

    Other channels than red, green and blue repeat these.
    """
    from sklearn.datasets import load_sample_images  # slow to import

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    corners = [(left, top) for left in range(0, 640, 160) for top in range(0, 424, 106)]
    parts = [photo.crop((x, y, x + 160, y + 106)) for photo in photographs for x, y in corners]
    images = torch.stack([description.transform(part) for part in parts[:count]])
    images = images[:, [channel % 3 for channel in range(description.channels)]]
    return Pictures(images, f"{len(images)} parts of two photographs")


def find_pictures(data: ImageDataModule | None, folder: str | Path | None, description: Description) -> Pictures:
    """Return images to verify on: those of a folder, else of the test split, else sample photographs."""
    count = images_per_pass(COMPARED_IMAGES, description.image_size)
    if folder is not None:
        return folder_pictures(folder, description, count)
    reason = "no data module is known"
    if data is not None:
        try:
            images = first_images(data, description, "test", count)
            return Pictures(images, f"{counted(len(images), 'test image')} of {type(data).__name__}")
        except UsageError as error:
            if data.splits:
                raise
            reason = str(error)
    pictures = sample_pictures(description, count)
    return pictures._replace(origin=f"{pictures.origin}, because the test images are not available ({reason})")


def as_input(images: Tensor, kind: str) -> Tensor:
    """Return uint8 images as the input of a graph: unchanged for ``uint8``, for ``float`` in [0, 1]."""
    return images if kind == "uint8" else to_dtype(images, torch.float32, scale=True)
