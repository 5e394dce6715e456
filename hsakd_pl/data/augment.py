"""Crop, flip and normalise uint8 images: pure functions, and the recipes built from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.errors import require


def crop_and_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad with zeros, cut the original size out again at an offset per image, mirror some images.

    ``images`` (B, C, H, W) of any dtype and device; ``draws`` (B, 3) int64 on that device: top offset,
    left offset (0..2*padding), whether to flip. Returns (B, C, H, W) by one gather for the batch: pixel by
    pixel torchvision's ``RandomCrop(size, padding=padding)`` and ``RandomHorizontalFlip`` for that draw.
    """
    count, channels, height, width = images.shape
    device = images.device
    top, left, flip = draws[:, :, None].unbind(1)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(flip.bool(), width - 1 - columns, columns)
    padded = F.pad(images, (padding,) * 4)
    sample = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class PadCropFlip:
    """The CIFAR recipe: a random crop out of the zero-padded image, then a flip with probability 1/2."""

    padding: int
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws for :func:`crop_and_flip`: (count, 3) int64, every offset equally likely."""
        offsets = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.randint(2, (count, 1), generator=generator) * self.flip
        return torch.cat([offsets, flips], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return crop_and_flip(images, draws, self.padding)


def random_resized_crop(size: int, flip: bool = True) -> v2.Transform:
    """ImageNet's training recipe for one PIL image or uint8 tensor; gives a uint8 tensor (3, size, size)."""
    crop, flips = v2.RandomResizedCrop(size, antialias=True), [v2.RandomHorizontalFlip()] * flip
    return v2.Compose([crop, *flips, v2.PILToTensor()])


def resized_center_crop(size: int, resize: int) -> v2.Transform:
    """Short side to ``resize`` (bilinear, antialiased), then the central ``size`` x ``size``, as uint8."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) -> float32 ``(images / 255 - mean) / std`` per channel; statistics (C, 1, 1)."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def check_statistics(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise UsageError, naming the data module ``name``, unless both are three finite numbers and ``std`` above 0."""
    for option, values in (("mean", torch.as_tensor(mean)), ("std", torch.as_tensor(std))):
        valid = values.shape == (3,) and bool(values.isfinite().all()) and (option == "mean" or bool(values.min() > 0))
        require(valid, f"{name}.{option}", values.tolist(), f"three finite numbers{', above 0' * (option == 'std')}")
