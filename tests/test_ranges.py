"""Options out of their range, and numbers that are none, end in one error that names them."""

import math
import re
from typing import Any

import pytest
import torch
from small import BATCH, loader, make, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule, DigitsDataModule
from hsakd_pl.data import Split
from hsakd_pl.errors import UsageError

NAN, INF = math.nan, math.inf
OPTIONS = [
    *(("baseline", "lr", value) for value in (-1, NAN, INF)),
    *(("probe", "momentum", value) for value in (-0.1, 1.0, NAN)),
    *(("teacher", "weight_decay", value) for value in (-1e-4, NAN)),
    *(("mutual", "milestones", value) for value in ([-1], [3, -5])),
    *(("student", "warmup_epochs", value) for value in (-1, -5)),
    *(("teacher", "branch_metrics_every", value) for value in (-1,)),
    *((kind, "temperature", value) for kind in ("student", "mutual") for value in (0, -3.0, NAN, INF)),
    *(("student", weight, value) for weight in ("ce_weight", "kd_weight", "joint_kd_weight") for value in (-1, NAN)),
    *(("mutual", weight, -1e-9) for weight in ("ce_weight", "joint_ce_weight", "kd_weight", "joint_kd_weight")),
    *(("teacher", weight, INF) for weight in ("ce_weight", "joint_ce_weight")),
    ("probe", "knn", -1),
]


@pytest.mark.parametrize(("kind", "option", "value"), OPTIONS, ids=str)
def test_an_option_out_of_its_range(kind: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{option} is {re.escape(str(value))}: it must be"):
        make(kind, **{option: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(UsageError, match="nesterov is True: it must be off without momentum"):
        make("baseline", momentum=0.0)
    make("baseline", momentum=0.0, nesterov=False)


class Given(DigitsDataModule):
    """Digits of which a test spoils something."""

    def __init__(self, images: Any, labels: Any, **attributes: Any) -> None:
        super().__init__(batch_size=4)
        self.given = Split(images, labels)
        for name, value in attributes.items():
            setattr(self, name, value)

    def read(self, train: bool) -> Split:
        return self.given


IMAGES, LABELS = torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.arange(6)
SPLITS: dict[str, tuple[Any, Any, str]] = {
    "labels below 0": (IMAGES, LABELS - 1, "from -1 to 4, not int64"),
    "labels above N - 1": (IMAGES, LABELS + 5, "from 5 to 10, not int64"),
    "fewer labels than images": (IMAGES, LABELS[:4], r"labels torch.int64 \(4,\)"),
    "more labels than images": (IMAGES[:4], LABELS, r"labels torch.int64 \(6,\)"),
    "labels one-hot": (IMAGES, torch.eye(6).long(), r"labels torch.int64 \(6, 6\)"),
    "float labels": (IMAGES, LABELS.float(), r"labels torch.float32 \(6,\)"),
    "labels in a list": (IMAGES, LABELS.tolist(), "labels list"),
    "no image": (IMAGES[:0], LABELS[:0], "0 images, at least 2"),
    "one image": (IMAGES[:1], LABELS[:1], "1 images, at least 2"),
    "no path": ([], LABELS[:0], "0 images"),
    "grey": (IMAGES[:, :1], LABELS, r"torch.uint8 \(6, 1, 16, 16\), .* repeat the channel"),
    "grey without a channel": (IMAGES[:, 0], LABELS, r"torch.uint8 \(6, 16, 16\)"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), LABELS, r"torch.uint8 \(6, 16, 16, 3\), .* permute channels"),
    "with transparency": (IMAGES.repeat(1, 2, 1, 1)[:, :4], LABELS, r"torch.uint8 \(6, 4, 16, 16\)"),
    "int64": (IMAGES.long(), LABELS, r"torch.int64 \(6, 3, 16, 16\)"),
    "bool": (IMAGES.bool(), LABELS, r"torch.bool"),
    "not a number": (IMAGES.float() / 0, LABELS, "images with NaN or infinite numbers"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_nothing_can_be_trained_on(name: str) -> None:
    images, labels, reason = SPLITS[name]
    with pytest.raises(UsageError, match=rf"Given.read\(train=True\) gives .*{reason}"):
        Given(images, labels).setup("fit")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("std", (0.1, 0.0, 0.1)),
        ("std", (0.1, -1.0, 0.1)),
        ("std", (0.1,)),
        ("mean", (0, NAN, 0)),
        ("mean", (0, INF, 0)),
    ],
)
def test_statistics_that_are_none(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{option} is .*: it must be three finite numbers"):
        Given(IMAGES, LABELS, **{option: value}).setup("fit")


@pytest.mark.parametrize("network", ["vgg8", "mobilenetv2", "resnet50"])
def test_batch_norm_of_a_single_pixel(network: str) -> None:
    module = BaselineModule(network, num_classes=4)
    size = module.network.least_size
    with pytest.raises(UsageError, match="batch_size: a batch norm cannot train on 1 image of this size"):
        module.training_step((torch.randn(1, 3, size, size), torch.tensor([0])), 0)
    module.training_step((torch.randn(2, 3, size, size), torch.tensor([0, 1])), 0)


@pytest.mark.parametrize("spoilt", [NAN, INF, -INF])
def test_images_that_are_no_numbers_are_called_so(spoilt: float) -> None:
    images = BATCH[0].clone()
    images[1, 0, 3, 3] = spoilt
    with pytest.raises(UsageError, match="images of epoch 0 hold NaN or infinite numbers"):
        trainer().fit(make("baseline"), loader(images))


class Spoil(torch.nn.Module):
    """A network whose weights a single step makes infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.sum((2, 3))


@pytest.mark.parametrize("validated", [True, False])
def test_a_step_that_diverges_is_no_result(validated: bool, tmp_path: Any) -> None:
    """The loss of the only batch is still finite: what comes after it is not."""
    module = BaselineModule(Spoil(), num_classes=3, lr=3e38, momentum=0.9)
    images = DataLoader(TensorDataset(BATCH[0], BATCH[1] % 3), batch_size=4)
    with pytest.raises(UsageError, match="NaN or infinite in epoch 0"):
        trainer(tmp_path).fit(module, images, images if validated else None)
    assert not list(tmp_path.glob("*.ckpt"))
