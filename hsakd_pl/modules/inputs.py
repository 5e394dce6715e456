"""Give a teacher the images it was trained on: its normalisation and its image size, from the student's batch."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.data.description import Description
from hsakd_pl.data.learned import Learned
from hsakd_pl.ops import Transforms


class InputAdapter(nn.Module):
    """Turn a student's normalised images (rows, C, S, S) into those of a teacher with other statistics or another size.

    Args:
        scale: factor (C, 1, 1) of each channel.
        shift: number (C, 1, 1) that is added to each channel afterwards.
        image_size: side of the teacher's images; None keeps the student's.
        transforms: the transformations of the rows where they do not commute with scale and shift, as those of colours;
            the rows are then adapted without transformations, and transformed again.
        interpolation: interpolation of images of another size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        scale: Tensor,
        shift: Tensor,
        image_size: int | None = None,
        transforms: Transforms | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.image_size = image_size
        self.transforms = transforms
        self.interpolation = interpolation

    def forward(self, images: Tensor) -> Tensor:
        if self.transforms is None:
            return self._resized(images * self.scale + self.shift)
        originals = images[: len(images) // self.transforms.count]
        return self._resized(self.transforms(originals * self.scale + self.shift))

    def _resized(self, images: Tensor) -> Tensor:
        if self.image_size is None or self.image_size == images.shape[-1]:
            return images
        size = (self.image_size, self.image_size)
        shrinks = images.shape[-1] > size[0]  # then the data's transforms use antialiasing, too
        return F.interpolate(images, size, mode=self.interpolation, antialias=shrinks)


def make_adapter(
    learned: Learned, description: Description, transforms: Transforms | None = None
) -> InputAdapter | None:
    """Return what turns images of the data into a teacher's; None where they are the same, or nothing is known.

    Args:
        learned: what is known of the data that the teacher was trained on.
        description: description of the data at hand.
        transforms: the transformations of the rows, if any.
    """
    same_size = learned.image_size in (None, description.image_size)
    alike = learned.normalised_alike(description.mean, description.std)
    if same_size and alike:
        return None
    mean, std = statistics(description.mean, description.std)
    learned_mean, learned_std = mean, std
    if not alike and learned.mean is not None and learned.std is not None:
        learned_mean, learned_std = statistics(learned.mean, learned.std)
    scale = (std / learned_std).float()
    shift = ((mean - learned_mean) / learned_std).float()
    image_size = None if same_size else learned.image_size
    kept_transforms = None if commutes(transforms, scale, shift) else transforms
    return InputAdapter(scale, shift, image_size, kept_transforms, learned.interpolation)


def statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation as tensors (C, 1, 1) of doubles."""
    both = torch.tensor([mean, std], dtype=torch.float64)[:, :, None, None]
    return both[0], both[1]


def commutes(transforms: Transforms | None, *constants: Tensor) -> bool:
    """Check whether transformations leave images of one colour (C, 1, 1) unchanged, as rotations and flips do."""
    if transforms is None:
        return True
    pixels = torch.stack(constants)
    return all(torch.equal(transforms.apply(pixels, m), pixels) for m in range(1, transforms.count))
