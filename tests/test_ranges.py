"""Test that options out of range and non-finite numbers raise one error that names them."""

import math
import re
from typing import Any

import pytest
import torch
from small import BATCH, loader, make, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule
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
def test_option_out_of_range_raises_naming_it(kind: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{option} must be .*, got {re.escape(str(value))}\.$"):
        make(kind, **{option: value})


def test_nesterov_without_momentum_raises() -> None:
    with pytest.raises(UsageError, match="nesterov must be off without momentum, got True"):
        make("baseline", momentum=0.0)
    make("baseline", momentum=0.0, nesterov=False)


@pytest.mark.parametrize("network", ["vgg8", "mobilenetv2", "resnet50"])
def test_batch_norm_of_a_single_value_raises(network: str) -> None:
    module = BaselineModule(network, num_classes=4)
    size = module.network.least_size
    with pytest.raises(UsageError, match="batch_size: BatchNorm needs more than one value per channel, but"):
        module.training_step((torch.randn(1, 3, size, size), torch.tensor([0])), 0)
    module.training_step((torch.randn(2, 3, size, size), torch.tensor([0, 1])), 0)


@pytest.mark.parametrize("spoilt", [NAN, INF, -INF])
def test_non_finite_images_raise_naming_the_images(spoilt: float) -> None:
    images = BATCH[0].clone()
    images[1, 0, 3, 3] = spoilt
    with pytest.raises(UsageError, match=r"The input images contain NaN or inf \(epoch 0\); fix the data"):
        trainer().fit(make("baseline"), loader(images))


class Spoil(torch.nn.Module):
    """Provide a network whose weights become infinite in a single step."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.sum((2, 3))


@pytest.mark.parametrize("validated", [True, False])
def test_diverging_last_step_raises(validated: bool, tmp_path: Any) -> None:
    """Diverge in the only step, whose loss is still finite."""
    module = BaselineModule(Spoil(), num_classes=3, lr=3e38, momentum=0.9)
    images = DataLoader(TensorDataset(BATCH[0], BATCH[1] % 3), batch_size=4)
    with pytest.raises(UsageError, match="NaN or infinite in epoch 0"):
        trainer(tmp_path).fit(module, images, images if validated else None)
    assert not list(tmp_path.glob("*.ckpt"))
