"""Test networks that a subclass keeps frozen next to its teacher, or sets as plain attributes."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import BATCH, CLASSES, TEACHER, loader, make, trainer
from torch import Tensor, nn

from hsakd_pl import DigitsDataModule, Frozen, StudentModule, create_network, load_weights
from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export import Student
from hsakd_pl.methods import KDModule
from hsakd_pl.modules.frozen import frozen_in
from hsakd_pl.ops import kd_loss

SEVERAL = {
    "attribute": lambda network: Frozen(network),
    "list": lambda network: [Frozen(network)],
    "dict": lambda network: {"one": Frozen(network)},
    "set": lambda network: {Frozen(network)},
    "dict of lists": lambda network: {"one": [Frozen(network)]},
}


def plain(classes: int = CLASSES) -> nn.Module:
    """Return a network of no class of the package, with a norm and dropout."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(8, classes))


class TwoTeachers(KDModule):
    """Add the logits of a second teacher, which ``store`` turns into what the attribute holds."""

    def __init__(self, *args: Any, second: nn.Module, store: Any = Frozen, **options: Any) -> None:
        super().__init__(*args, num_classes=CLASSES, fast=options.pop("fast", False), **options)
        self.second = store(second)

    def terms(self, student: Any, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
        return super().terms(student, teacher, labels) | {"loss_second": self.second_loss(student.logits)}

    def second_loss(self, logits: Tensor) -> Tensor:
        second = next(frozen_in(self.second), self.second)
        with torch.no_grad():
            output = second(BATCH[0][: len(logits)].to(logits.dtype))
        return kd_loss(logits, getattr(output, "logits", output), 4.0)


def two_teachers(second: nn.Module, **options: Any) -> TwoTeachers:
    return TwoTeachers("resnet8", "resnet14", teacher_weights="random", second=second, **options)


@pytest.mark.parametrize("store", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("kind", ["network", "module"])
@pytest.mark.parametrize("fast", [False, True])
def test_second_teacher_is_hidden_from_optimizer_and_checkpoint(
    store: Any, kind: str, fast: bool, tmp_path: Path
) -> None:
    network = plain() if kind == "module" else create_network("resnet14", CLASSES, branches=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    module = two_teachers(network, store=store, fast=fast)
    assert len(module.teachers) == 2
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, loader(), loader())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(layer.training for layer in network.modules())
    [group] = run.optimizers[0].param_groups
    assert len(group["params"]) == len(list(module.network.parameters()))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"networks.0.{name}" for name in module.network.state_dict()}
    load_weights(create_network("resnet8", CLASSES, branches=False), tmp_path / "last.ckpt")


def test_second_teacher_that_is_appended_too_counts_once() -> None:
    module = two_teachers(plain())
    module.frozen.append(module.second)
    trainer().fit(module, loader())
    assert len(module.frozen) == 2


@pytest.mark.parametrize("store", SEVERAL.values(), ids=SEVERAL)
def test_second_teacher_follows_dtype(store: Any) -> None:
    network = plain()
    two_teachers(network, store=store).double()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


def test_second_teacher_that_is_appended_to_a_list_follows_the_fit() -> None:
    module = two_teachers(plain(), store=lambda network: [])
    module.second.append(Frozen(plain()))
    trainer(precision="64-true").fit(module, loader(BATCH[0].double()))
    assert {parameter.dtype for parameter in module.second[0].network.parameters()} == {torch.float64}


def test_exported_student_as_second_teacher_is_given_the_images_that_it_learnt_from() -> None:
    description = Description([*map(str, range(10))], 16, 16, (0.1,) * 3, (0.5,) * 3)
    student = Student(create_network("resnet14", 10, branches=False), **description.saved())
    module = KDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
    module.second = Frozen(student)
    data = DigitsDataModule(batch_size=8, num_workers=0)
    trainer(limit_train_batches=1, limit_val_batches=0).fit(module, data)
    pixels = data.splits["test"].images[:4]
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (data.mean, data.std))
    answer = module.second((pixels / 255 - mean) / std).logits
    torch.testing.assert_close(answer, student(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [None, "resnet8", [plain()]])
def test_what_is_no_network_cannot_be_frozen(network: Any) -> None:
    with pytest.raises(UsageError, match=r"Frozen must be given a network, an nn.Module, got (NoneType|str|list)"):
        Frozen(network)


def test_second_teacher_of_a_data_module_runs_with_description() -> None:
    class Logits(TwoTeachers):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            return super(TwoTeachers, self).losses(batch) | {"loss_second": self.second(batch[0]).mean()}

        def terms(self, student: Any, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
            return super(TwoTeachers, self).terms(student, teacher, labels)

    class Ten(Logits):
        def __init__(self) -> None:
            KDModule.__init__(self, "resnet8", "resnet14", teacher_weights="random", num_classes=10)
            self.second = Frozen(plain(10))

    trainer(limit_train_batches=2, limit_val_batches=1).fit(Ten(), DigitsDataModule(batch_size=8))


def test_network_as_plain_attribute_is_refused_with_the_line_that_is_right() -> None:
    with pytest.raises(UsageError, match=r"self\.second = Frozen\(network\)"):
        two_teachers(create_network("resnet14", CLASSES), store=lambda network: network)


PLAIN = {
    "frozen": lambda network: network.requires_grad_(False),
    "without gradients": lambda network: network,
    "frozen in a list": lambda network: nn.ModuleList([network.requires_grad_(False)]),
}


@pytest.mark.parametrize("store", PLAIN.values(), ids=PLAIN)
def test_module_that_is_not_trained_is_refused_with_the_line_that_is_right(store: Any) -> None:
    module = two_teachers(plain(), store=store)
    with pytest.raises(UsageError, match=r"second \((Sequential|ModuleList)\).*self\.second = Frozen\(network\)"):
        trainer().fit(module, loader())


def test_trained_parts_and_parts_without_weights_are_accepted() -> None:
    class Parts(StudentModule):
        def __init__(self) -> None:
            super().__init__("resnet8", num_classes=CLASSES, **TEACHER)
            self.scale = nn.Linear(CLASSES, CLASSES)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def terms(self, student: Any, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
            terms = super().terms(student, teacher, labels)
            return terms | {"loss_scale": self.scale(student.logits).square().mean()}

    trainer(max_epochs=1).fit(Parts(), loader())


def test_part_that_a_later_epoch_trains_is_accepted_as_a_list(caplog: pytest.LogCaptureFixture) -> None:
    class Later(StudentModule):
        def __init__(self) -> None:
            super().__init__("resnet8", num_classes=CLASSES, **TEACHER)
            self.scale = nn.ModuleList([nn.Linear(CLASSES, CLASSES)])

    with caplog.at_level("INFO"):
        trainer().fit(Later(), loader())
    assert "scale (ModuleList) is not trained in the first step" in caplog.text


def test_frozen_module_alone_normalises_nothing_and_returns_what_the_module_returns() -> None:
    network = plain()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Frozen(network)(images), network.eval()(images))
    assert isinstance(make("baseline"), pl.LightningModule)
