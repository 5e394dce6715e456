"""Test extensions of the package: each example is complete and needs no change of the library."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from small import TEACHER, history, trainer
from torch import Tensor

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    HSAKDModule,
    StudentModule,
    TeacherModule,
    create_network,
    load_weights,
)
from hsakd_pl.cli.main import main
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.methods import DistilledModule
from hsakd_pl.modules import Frozen
from hsakd_pl.networks import NetworkOutput, StagedBackbone
from hsakd_pl.networks.layers import conv3x3
from hsakd_pl.ops import kd_loss


class TwoTeachers(StudentModule):
    """Add the class logits of a second teacher to HSAKD."""

    def __init__(self, *args: Any, second: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.second = Frozen(second)
        self.frozen.append(self.second)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        inputs = self.network.transforms(images)
        student, second = self.network.outputs(inputs), self.second(inputs)
        terms = self.terms(student, self.teacher(inputs), labels)
        return terms | {"loss_second": kd_loss(student.logits, second.logits, self.temperature)}


class DKD(StudentModule):
    """Implement decoupled distillation (Zhao et al., CVPR 2022) with separate weights for target and other classes."""

    def __init__(self, network: Any, teacher: Any, alpha: float = 1.0, beta: float = 8.0, **kwargs: Any) -> None:
        super().__init__(network, teacher, temperature=4.0, joint_kd_weight=0, transform_images=False, **kwargs)
        self.alpha, self.beta = alpha, beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        target = F.one_hot(labels, self.num_classes).bool()
        ours, theirs = ((output.logits / self.temperature).log_softmax(1) for output in (student, teacher))
        pairs = [
            torch.stack([log[target], log.masked_fill(target, -torch.inf).logsumexp(1)], 1) for log in (ours, theirs)
        ]
        others = [log[~target].unflatten(0, (len(labels), -1)) for log in (ours, theirs)]
        decoupled = self.alpha * kd_loss(*pairs, 1.0) + self.beta * kd_loss(*others, 1.0)
        return {"loss_ce": F.cross_entropy(student.logits, labels), "loss_kd": self.temperature**2 * decoupled}


class FeatureStudent(StudentModule):
    """Add similarity preservation (Tung, ICCV 2019) between feature maps to HSAKD."""

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        ours, theirs = (F.normalize(each.features[-1].flatten(1)) for each in (student, teacher))
        ours, theirs = (F.normalize(rows @ rows.T) for rows in (ours, theirs))
        return super().terms(student, teacher, labels) | {"loss_similarity": (ours - theirs).square().mean()}


class Regressed(DistilledModule):
    """Implement a custom method: a linear layer, trained with the student, predicts the teacher's embedding."""

    def __init__(self, network: Any, teacher: Any, regressed_weight: float = 2.0, **options: Any) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_regressed=regressed_weight)
        student_shapes, teacher_shapes = self.shapes("embedding")
        self.regressor = nn.Linear(student_shapes.width, teacher_shapes.width)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = F.mse_loss(self.regressor(student.embedding), teacher.embedding)
        return super().terms(student, teacher, labels) | {"loss_regressed": loss}


class SmallNet(StagedBackbone):
    """A backbone of three convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(conv3x3(3, 8), channels=(8, 16, 32), strides=(1, 2, 2), num_classes=num_classes)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        channels = self.channels[stage]
        return nn.Sequential(conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels), nn.ReLU())

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], num_outputs))


class StripesDataModule(ImageDataModule):
    """Implement a custom data set: vertical or horizontal stripes, in memory as uint8."""

    num_classes, image_size = 2, 8
    mean = std = (0.5, 0.5, 0.5)
    train_transform = PadCropFlip(padding=1)

    def read(self, train: bool) -> Split:
        labels = torch.arange(64 if train else 16) % 2
        upright = (torch.arange(8) % 4 < 2).mul(255).to(torch.uint8).expand(3, 8, 8)
        images = torch.where(labels.view(-1, 1, 1, 1) == 0, upright, upright.transpose(1, 2))
        return Split(images, labels)


STUDENTS: dict[str, tuple[type[StudentModule], dict[str, Any], set[str]]] = {
    "a second teacher": (TwoTeachers, {"second": create_network("wrn_16_1", 10)}, {"loss_second"}),
    "DKD": (DKD, {}, set()),
    "a loss on features": (FeatureStudent, {}, {"loss_similarity"}),
}


@pytest.mark.parametrize("example", STUDENTS)
def test_custom_method_trains(example: str) -> None:
    kind, options, added = STUDENTS[example]
    module = kind("resnet8", **TEACHER, num_classes=10, lr=0.01, **options)
    run = trainer(limit_train_batches=2, limit_val_batches=1)
    run.fit(module, datamodule=DigitsDataModule(batch_size=16))
    logged = {name.removeprefix("train/") for name in run.callback_metrics if name.startswith("train/loss_")}
    assert logged == {"loss_ce", "loss_kd"} | added | ({"loss_joint_kd"} if added else set())
    assert all(parameter.grad is None for frozen in module.frozen for parameter in frozen.parameters())


def test_custom_method_part_trains_and_is_saved(tmp_path: Path) -> None:
    module = Regressed("resnet8", **TEACHER, num_classes=10, lr=0.01, kd_weight=1.0)
    before = module.regressor.weight.detach().clone()
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(
        module, datamodule=DigitsDataModule(batch_size=16)
    )
    assert not torch.equal(module.regressor.weight, before)
    again = Regressed.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(again.regressor.weight, module.regressor.weight)
    student = load_weights(create_network("resnet8", 10, branches=False), tmp_path / "last.ckpt")
    torch.testing.assert_close(student.state_dict(), module.network.state_dict())


def test_dkd_with_equal_factors_equals_kd() -> None:
    """Compare: the two parts, the second weighted by the teacher's probability of other classes, sum to Hinton's KD."""
    module = DKD("resnet8", **TEACHER, num_classes=10, alpha=1.0, beta=1.0).double()
    images, labels = torch.randn(1, 3, 8, 8).double(), torch.tensor([3])
    module.eval()
    student, teacher = module.network.outputs(images), module.teacher(images)
    both = [module.terms(student, teacher, labels)["loss_kd"]]
    module.beta = 0.0
    both.append(module.terms(student, teacher, labels)["loss_kd"])
    others = 1 - (teacher.logits / 4).softmax(1)[0, 3]
    expected = kd_loss(student.logits, teacher.logits, 4.0)
    torch.testing.assert_close(both[1] + others * (both[0] - both[1]), expected)


def test_custom_data_set_trains() -> None:
    run, module = trainer(max_epochs=3), BaselineModule("resnet8", num_classes=2, lr=0.05)
    run.fit(module, datamodule=StripesDataModule(batch_size=16))
    assert run.callback_metrics["val/acc"] == 1


def test_added_term_uses_the_single_forward_pass() -> None:
    """Check that it gets what other terms get; batch norms move once per step and no network runs twice."""
    torch.manual_seed(0)
    passes: dict[str, int] = {}

    def stepped(kind: type[HSAKDModule]) -> HSAKDModule:
        torch.manual_seed(0)
        module = kind("resnet8", **TEACHER, num_classes=10)
        for name, network in (("student", module.network.backbone), ("teacher", module.teacher.network.backbone)):
            network.stem.register_forward_hook(lambda *_, name=name: passes.update({name: passes.get(name, 0) + 1}))
        module.train()
        module.training_step((torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)), 0)
        return module

    plainly, added = stepped(StudentModule), stepped(FeatureStudent)
    assert passes == {"student": 2, "teacher": 2}
    norm, other = (module.network.backbone.stem.bn1 for module in (plainly, added))
    assert norm.num_batches_tracked == other.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, other.running_mean)


def test_term_weight_defaults_to_1_and_weight_without_term_raises() -> None:
    batch = torch.randn(4, 3, 8, 8), torch.arange(4)
    module = FeatureStudent("resnet8", **TEACHER, num_classes=10)
    terms = module.losses(batch)
    torch.testing.assert_close(module.training_step(batch, 0), sum(terms.values()))
    module.loss_weights["loss_similarity"] = 3.0
    torch.testing.assert_close(
        module.training_step(batch, 0), sum(terms.values()) + 2 * terms["loss_similarity"], rtol=1e-4, atol=1e-4
    )
    module.loss_weights["loss_similarty"] = 3.0
    with pytest.raises(
        ValueError, match=r"loss_weights names loss_similarty; the terms are loss_ce, .*loss_similarity"
    ):
        module.training_step(batch, 0)


USER_LOSS = """
from hsakd_pl import StudentModule

class ConfidentStudent(StudentModule):
    def terms(self, student, teacher, labels):
        log_probability = student.logits.log_softmax(1)
        entropy = -(log_probability.exp() * log_probability).sum(1).mean()
        return super().terms(student, teacher, labels) | {"loss_entropy": entropy}
"""

USER_LOSS_CONFIG = """
model:
  class_path: confident.ConfidentStudent
  init_args:
    network: resnet8
    teacher: resnet14
    teacher_weights: random
    loss_weights: {loss_entropy: 0.5}
data: {class_path: hsakd_pl.DigitsDataModule}
trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu, default_root_dir: run}
"""

USER_CALLBACK = """
from pytorch_lightning import Callback

class StopAtAccuracy(Callback):
    def __init__(self, accuracy: float):
        self.accuracy = accuracy

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.callback_metrics["val/acc"] >= self.accuracy:
            trainer.should_stop = True
"""

USER_CALLBACK_CONFIG = """
model: {class_path: hsakd_pl.BaselineModule, init_args: {network: resnet8}}
data: {class_path: hsakd_pl.DigitsDataModule}
trainer:
  max_epochs: 50
  limit_train_batches: 2
  accelerator: cpu
  default_root_dir: run
  callbacks:
  - {class_path: stopping.StopAtAccuracy, init_args: {accuracy: 0.05}}
"""


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, whose Python files can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_user_loss_takes_its_weight_from_yaml_without_init(user_folder: Path) -> None:
    Path("confident.py").write_text(USER_LOSS)
    Path("config.yaml").write_text(USER_LOSS_CONFIG)
    main(["fit", "--config", "config.yaml"])
    [epoch] = history("run")
    terms = ("loss_ce", "loss_kd", "loss_joint_kd")
    expected = sum(epoch[f"train/{term}"] for term in terms) + 0.5 * epoch["train/loss_entropy"]
    assert epoch["train/loss"] == pytest.approx(expected, rel=1e-4)
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["loss_weights"] == {"loss_entropy": 0.5}


def test_user_callback_from_yaml_acts_in_a_run(user_folder: Path) -> None:
    Path("stopping.py").write_text(USER_CALLBACK)
    Path("config.yaml").write_text(USER_CALLBACK_CONFIG)
    main(["fit", "--config", "config.yaml"])
    assert json.loads(Path("run/result.json").read_text())["epochs"] < 50


def test_new_backbone_trains_as_teacher_and_as_student() -> None:
    limits: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1}
    teacher = TeacherModule("test_extending.SmallNet", num_classes=10, lr=0.01)
    trainer(**limits).fit(teacher, datamodule=DigitsDataModule(batch_size=16))
    student = StudentModule("test_extending.SmallNet", teacher.network, num_classes=10, lr=0.01)
    before = {key: tensor.clone() for key, tensor in student.network.state_dict().items()}
    run = trainer(**limits)
    run.fit(student, datamodule=DigitsDataModule(batch_size=16))
    assert "train/loss_joint_kd" in run.callback_metrics
    assert len(student.network.branches) == 2
    assert not torch.equal(student.network.state_dict()["backbone.stem.weight"], before["backbone.stem.weight"])
