"""Test that networks which take images of some sizes alone are refused for others before the first step."""

from collections.abc import Callable
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torchvision
from own_networks import OWN
from small import CLASSES, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import KDModule
from hsakd_pl.networks import as_network
from hsakd_pl.networks.cost import multiply_adds


class Images(pl.LightningDataModule):
    """Two images of a side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.image_size = side
        self.num_classes = CLASSES

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        images = torch.randn(2, 3, self.image_size, self.image_size)
        return DataLoader(TensorDataset(images, torch.arange(2)), batch_size=2)


def torchvisions(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)


# Networks, and a side for which they fail
SMALL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (OWN[name], 64) for name in ("view", "features and classifier", "LeNet", "vision transformer")},
    "complex weights": (OWN["complex weights"], 48),
    "alexnet": (lambda: torchvisions("alexnet"), 32),
    "squeezenet1_1": (lambda: torchvisions("squeezenet1_1"), 8),
}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_size_that_a_network_cannot_take_are_refused_in_one_sentence(name: str, role: str) -> None:
    make, side = SMALL[name]
    teaches = role == "teacher"
    module = (
        KDModule("resnet8", make(), num_classes=CLASSES) if teaches else BaselineModule(make(), num_classes=CLASSES)
    )
    with pytest.raises(UsageError, match=rf"^image size {side} x {side}: .* fails \(.*use images of \d+ x") as error:
        trainer().fit(module, Images(side))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_multiply_adds_of_a_size_that_a_network_cannot_take_are_refused(name: str) -> None:
    make, side = SMALL[name]
    network = as_network(make(), CLASSES)
    for measure in (network.shapes, partial(multiply_adds, network)):
        with pytest.raises(UsageError, match=f"^image size {side} x {side}: .* fails"):
            measure(side)


class Auxiliary(nn.Module):
    """Compute logits from a large window too, in training alone, as Inception does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, padding=1)
        self.auxiliary = nn.Conv2d(8, CLASSES, 5)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        logits = self.fc(maps.mean((2, 3)))
        return logits + self.auxiliary(maps).mean((2, 3)) if self.training else logits


def test_size_that_a_network_takes_in_eval_mode_alone_is_refused_for_students() -> None:
    expected = r"^image size 16 x 16: Auxiliary fails \(.*use images of \d+ x"
    with pytest.raises(UsageError, match=expected):
        trainer().fit(BaselineModule(Auxiliary(), num_classes=CLASSES), Images(16))
    trainer().fit(KDModule("resnet8", Auxiliary(), num_classes=CLASSES), Images(16))


class Summed(nn.Module):
    """Return one row of logits for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean((0, 2, 3)))[None]


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("make", "rows"), [(OWN["view to a fixed width"], "8 rows"), (Summed, "1 row")], ids=["more rows", "one row"]
)
def test_logits_of_another_number_of_images_are_refused(make: Callable[[], nn.Module], rows: str, role: str) -> None:
    student, teacher = (make(), "resnet8") if role == "student" else ("resnet8", make())
    module = KDModule(student, teacher, num_classes=CLASSES, teacher_weights="random" if teacher == "resnet8" else None)
    with pytest.raises(UsageError, match=f"returns {rows} of logits for 2 images of 64 x 64"):
        trainer().fit(module, Images(64))


class Squeezed(nn.Module):
    """Lose the dimension of the batch for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean((2, 3))).squeeze()


class OnAccelerator(nn.Module):
    """Fail on the CPU, as kernels for a GPU alone do."""

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("the kernel needs a GPU")


@pytest.mark.parametrize("network", [Squeezed, OnAccelerator])
def test_network_that_may_take_a_size_is_not_refused(network: type[nn.Module]) -> None:
    as_network(network(), CLASSES).check_image_size(32, 32)


def test_network_that_squeezes_its_logits_trains() -> None:
    trainer().fit(BaselineModule(Squeezed(), num_classes=CLASSES), Images(32))
