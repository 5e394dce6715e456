"""Crop, flip and normalise uint8 images: pure functions, and the transforms built from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.data.crops import RandomResizedCrop
from hsakd_pl.errors import require

GREY = 127.0  # of erased squares: between black and white


def crop_and_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad images with zeros, crop them to their size at random offsets, and mirror some of them.

    Equals torchvision's ``RandomCrop(size, padding=padding)`` and ``RandomHorizontalFlip`` pixel by pixel, but is one
    gather for the whole batch.

    Args:
        images: images (B, C, H, W) of any dtype and device.
        draws: random numbers (B, 3), int64, on the same device: top offset and left offset in 0..2*padding, and 1 to
            mirror the image, otherwise 0.
        padding: pixels to pad on every side.

    Returns:
        Images (B, C, H, W).
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
    """CIFAR's augmentation: a random crop of the zero-padded image, mirrored with probability 1/2.

    Args:
        padding: pixels to pad on every side.
        flip: mirror half of the images.
    """

    padding: int
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the random numbers (count, 3) for :func:`crop_and_flip`; every offset is equally likely."""
        offsets = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.randint(2, (count, 1), generator=generator)
        if not self.flip:
            flips = torch.zeros_like(flips)
        return torch.cat([offsets, flips], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return crop_and_flip(images, draws, self.padding)

    def of_one_image(self, size: int) -> v2.Transform:
        """Return torchvision's transform of one image (C, size, size), which draws its own random numbers."""
        crop = v2.RandomCrop(size, padding=self.padding)
        return v2.Compose([crop, v2.RandomHorizontalFlip()]) if self.flip else crop


def random_resized_crop(size: int, flip: bool = True) -> v2.Transform:
    """Return ImageNet's training transform: from an opened picture or a Jpeg to a uint8 tensor (3, size, size)."""
    transforms: list[v2.Transform] = [RandomResizedCrop(size, antialias=True)]
    if flip:
        transforms.append(v2.RandomHorizontalFlip())
    return v2.Compose([*transforms, v2.PILToTensor()])


def strongly_augmented() -> list[v2.Transform]:
    """Return what a strong view adds to crop and flip, for uint8 images (3, S, S) on a CPU or a GPU.

    RandAugment applies two operations at torchvision's default magnitude (Cubuk et al., NeurIPS 2020), then a grey
    square of at most half of the side is erased, as in the published code of MLKD and CRLD.
    """
    return [v2.RandAugment(num_ops=2), v2.RandomErasing(p=1.0, scale=(0.0, 0.25), ratio=(1.0, 1.0), value=GREY)]


def resized_center_crop(size: int, resize: int) -> v2.Transform:
    """Return the test transform: resize the short side (bilinear, antialiased) and crop the centre, as uint8."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(images / 255 - mean) / std`` as float32: uint8 images (B, C, H, W), statistics (C, 1, 1)."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def check_statistics(name: str, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> None:
    """Raise UsageError, naming their owner, unless mean and std are a finite number per channel, and std is above 0."""
    means = torch.as_tensor(mean)
    stds = torch.as_tensor(std)
    require(_finite(means, channels), f"{name}.mean", means.tolist(), f"{numbers(channels, 'finite ')}")
    valid_stds = _finite(stds, channels) and bool(stds.min() > 0)
    require(valid_stds, f"{name}.std", stds.tolist(), f"{numbers(channels, 'finite ')}, above 0")


def numbers(channels: int, kind: str = "") -> str:
    """Return ``three numbers``, or of a kind, for as many as there are channels."""
    word = {1: "one", 2: "two", 3: "three", 4: "four"}.get(channels, str(channels))
    return f"{word} {kind}number{'s' if channels > 1 else ''}"


def _finite(values: Tensor, channels: int) -> bool:
    return values.shape == (channels,) and bool(values.isfinite().all())
