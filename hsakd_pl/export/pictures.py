"""Real images that an exported network is verified, calibrated and tested on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.data.images import open_image
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

COUNT = 32  # images whose logits are compared
CALIBRATED = 256  # images that tell the range of each layer


class Pictures(NamedTuple):
    """Images (B, 3, S, S), uint8, and where they are from in words."""

    images: Tensor
    origin: str


def batches_of(data: ImageDataModule, known: Description, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images (B, 3, S, S) with labels (B,): all of ``test``, or without augmentation, shuffled, ``train``.

    Raises UsageError where the split is missing, of other classes, or normalised already.
    """
    data.adopt(known)
    data.setup("test" if split == "test" else "fit")
    for images, labels in data.plain_loader(data.splits[split], shuffle=split == "train"):
        assert isinstance(labels, Tensor), "splits to predict alone have paths"
        if images.dtype != torch.uint8:
            raise UsageError(f"{type(data).__name__} gives normalised images: an exported network does that by itself")
        yield images, labels


def first_images(data: ImageDataModule, known: Description, split: str, count: int) -> Tensor:
    """Take so many images (B, 3, S, S) of :func:`batches_of`."""
    batches = batches_of(data, known, split)
    return torch.cat([images for images, _ in islice(batches, -(-count // data.batch_size))])[:count]


def folder_pictures(folder: str | Path, known: Description, count: int = COUNT) -> Pictures:
    """Open images below a folder, brought to the network's size; UsageError where there is none, or a broken one."""
    paths = image_paths(local_path("images", folder), "images")[:count]
    images = torch.stack([known.transform(open_image(path, known.resize)) for path in paths])
    return Pictures(images, f"{len(images)} images of {folder}")


def sample_pictures(known: Description) -> Pictures:
    """Cut scikit-learn's two photographs into parts of the network's size."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    corners = [(left, top) for left in range(0, 640, 160) for top in range(0, 424, 106)]
    parts = [photo.crop((x, y, x + 160, y + 106)) for photo in photographs for x, y in corners]
    return Pictures(torch.stack([known.transform(part) for part in parts]), f"{len(parts)} parts of two photographs")


def find_pictures(data: ImageDataModule | None, folder: str | Path | None, known: Description) -> Pictures:
    """Give images to verify with: of a folder, or of the test split, or where that is missing sample photographs."""
    if folder is not None:
        return folder_pictures(folder, known)
    reason = "no data module is known"
    if data is not None:
        try:
            images = first_images(data, known, "test", COUNT)
            return Pictures(images, f"{len(images)} test images of {type(data).__name__}")
        except UsageError as error:
            if data.splits:
                raise
            reason = str(error)
    pictures = sample_pictures(known)
    return pictures._replace(origin=f"{pictures.origin}, since the test images are not there ({reason})")


def as_input(images: Tensor, kind: str) -> Tensor:
    """Bring uint8 images to what a graph takes: ``uint8``, or ``float`` in [0, 1]."""
    return images if kind == "uint8" else to_dtype(images, torch.float32, scale=True)
