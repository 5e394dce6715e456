"""Test that no strided 1x1 convolution of few channels reaches oneDNN; all maps here are too small to harm."""

import logging
from typing import Any

import pytest
import small
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hsakd_pl import BaselineModule, DigitsDataModule, HSAKDModule, QuantizationAware
from hsakd_pl.fast import strided
from hsakd_pl.fast.layout import networks_kept_contiguous
from hsakd_pl.methods import KDModule
from hsakd_pl.networks import as_network


class Differentiated(TorchDispatchMode):
    """Collect (input channels, kernel, stride) of the convolutions whose gradients are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            _, _, weight, _, stride, *_ = args
            self.seen.add((weight.shape[1], tuple(weight.shape[2:]), tuple(stride)))
        return func(*args, **(kwargs or {}))


class Stem(nn.Module):
    """Two strided branches on the images, as RepVGG's stem has them, and a strided shortcut of few channels."""

    def __init__(self, num_classes: int = small.CLASSES) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(3, 8, 1, stride=2)
        self.block = nn.Conv2d(8, 32, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(8, 32, 1, stride=2, bias=False)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = (self.wide(images) + self.narrow(images)).relu()
        return self.head((self.block(maps) + self.shortcut(maps)).mean((2, 3)))


class Functional(nn.Module):
    """A network whose own code calls such a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 1, 1))
        self.block = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, small.CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(F.conv2d(images, self.weight, stride=2)).mean((2, 3)))


def modules() -> dict[str, HSAKDModule]:
    """Return modules that train a network with such layers, by what is tried."""
    options = {"num_classes": small.CLASSES}
    return {
        "own": BaselineModule(Stem(), **options),
        "timm": BaselineModule("timm:repvgg_a0", **options),
        "taught": KDModule(Stem(), "resnet8", teacher_weights="random", **options),
    }


@pytest.mark.parametrize("name", ["own", "timm", "taught"])
def test_fit_slices_before_strided_convolutions_of_few_channels(name: str) -> None:
    module = modules()[name]
    with Differentiated() as convolutions:
        small.trainer().fit(module, small.loader(torch.randn(4, 3, 32, 32)))
    few = {(channels, kernel, stride) for channels, kernel, stride in convolutions.seen if channels < strided.BLOCK}
    assert (3, (1, 1), (1, 1)) in few
    assert not [seen for seen in few if seen[1] == (1, 1) and seen[2] != (1, 1)]
    assert not [layer for layer in module.modules() if strided.METHOD in vars(layer)]


def test_network_whose_code_calls_such_a_convolution_stays_contiguous(caplog: pytest.LogCaptureFixture) -> None:
    network = as_network(Functional(), small.CLASSES)
    with caplog.at_level(logging.INFO), Differentiated() as convolutions:
        assert networks_kept_contiguous([network], 8) == [network]
    assert "stay contiguous" in caplog.text and "Functional" in caplog.text
    assert (3, (1, 1), (2, 2)) in convolutions.seen  # in the trial of the other layout, which shows that it trains


@small.needs_onnx
def test_training_for_int8_slices_before_strided_convolutions_of_few_channels() -> None:
    module = BaselineModule(Stem(10), num_classes=10)
    trainer = small.trainer(callbacks=[QuantizationAware()], limit_train_batches=1, limit_val_batches=0)
    with Differentiated() as convolutions:
        trainer.fit(module, DigitsDataModule())
    few = {seen for seen in convolutions.seen if seen[0] < strided.BLOCK}
    assert {(3, (1, 1), (1, 1)), (8, (1, 1), (1, 1))} <= few
    assert not [seen for seen in few if seen[1] == (1, 1) and seen[2] != (1, 1)]


@pytest.mark.parametrize("stride", [2, 3, (2, 1), (1, 4)])
@pytest.mark.parametrize("padding", [0, "valid"])
@pytest.mark.parametrize("side", [6, 7])
def test_sliced_convolution_equals_strided_one(stride: Any, padding: Any, side: int) -> None:
    layer = nn.Conv2d(3, 4, 1, stride=stride, padding=padding).double()
    images = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    expected = layer(images)
    gradients = torch.autograd.grad(expected.sin().sum(), [images, *layer.parameters()])
    strided.convert(layer)
    assert strided.METHOD in vars(layer)
    found = layer(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), [images, *layer.parameters()]), gradients)
    torch.testing.assert_close(layer(images[0]), expected[0])  # an image without a batch
    strided.revert(layer)
    assert strided.METHOD not in vars(layer)


class Own(nn.Conv2d):
    """A convolution with code of its own."""

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(images, weight * 2, bias)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, stride=2, padding=1),
        nn.Conv2d(4, 4, 1, stride=2, groups=4),
        nn.Conv2d(4, 4, 3, stride=2),
        Own(4, 4, 1, stride=2),
    ],
    ids=["channels", "stride", "padding", "groups", "kernel", "own"],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Conv2d) -> None:
    before = set(vars(layer))
    strided.convert(layer)
    assert set(vars(layer)) == before
