"""Test that batched augmentation equals torchvision's, pixel by pixel and in distribution."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from hsakd_pl.data.augment import (
    PadCropFlip,
    crop_and_flip,
    normalise,
    random_resized_crop,
    resized_center_crop,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [2, 4])
def test_crop_and_flip_equals_torchvision_for_every_draw(padding: int, device: str) -> None:
    offsets = range(2 * padding + 1)
    draws = torch.tensor([[top, left, flip] for top in offsets for left in offsets for flip in (0, 1)])
    images = random_images(len(draws), 3, 16, 12)
    found = crop_and_flip(images.to(device), draws.to(device), padding).cpu()
    assert found.dtype == torch.uint8
    for image, (top, left, flip), mine in zip(images, draws.tolist(), found, strict=True):
        expected = tv.crop(tv.pad(image, [padding]), top, left, 16, 12)
        assert torch.equal(mine, tv.horizontal_flip(expected) if flip else expected)


def test_torchvision_random_crop_is_among_crop_and_flip_results() -> None:
    """Compare with torchvision's RandomCrop, draws included, so that padding and offsets mean the same."""
    image = random_images(1, 3, 8, 8)
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(1))
    ours = crop_and_flip(image.expand(25, -1, -1, -1), offsets, 2)
    crop = v2.RandomCrop(8, padding=2)
    hits = {int((ours == crop(image)).flatten(1).all(1).nonzero()) for _ in range(300)}
    assert hits == set(range(25))


def test_augmentation_draws_are_uniform_and_independent() -> None:
    draws = PadCropFlip(padding=4).draw(162_000, torch.Generator().manual_seed(0))
    joint = torch.bincount(draws[:, 0] * 18 + draws[:, 1] * 2 + draws[:, 2], minlength=162)
    # chi-square with 161 degrees of freedom: mean 161, standard deviation 18
    assert ((joint - 1000.0) ** 2 / 1000).sum() < 161 + 5 * 18
    assert not PadCropFlip(padding=2, flip=False).draw(1000, torch.Generator())[:, 2].any()


@pytest.mark.parametrize("device", DEVICES)
def test_normalise_equals_torchvision(device: str) -> None:
    images = random_images(4, 3, 8, 8)
    mean, std = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), mean, std)
    statistics = torch.tensor([mean, std], device=device)[:, :, None, None]
    torch.testing.assert_close(normalise(images.to(device), *statistics).cpu(), expected, rtol=0, atol=1e-6)


def test_crop_padding_is_black_before_normalisation() -> None:
    corner = crop_and_flip(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([[0, 0, 0]]), 4)
    value = normalise(corner, torch.tensor(0.5), torch.tensor(0.25))
    assert (value[..., :4, :] == -2).all() and (value[..., 4:, 4:] == 2).all()


def test_resize_recipes_return_uint8_of_requested_size() -> None:
    image = random_images(3, 50, 70)
    for source in (image, tv.to_pil_image(image)):
        for recipe in (random_resized_crop(32), resized_center_crop(32, 40)):
            found = recipe(source)
            assert found.shape == (3, 32, 32) and found.dtype == torch.uint8
    square = random_images(5, 3, 96, 96)
    assert torch.equal(resized_center_crop(32, 32)(square), tv.resize(square, [32], antialias=True))
