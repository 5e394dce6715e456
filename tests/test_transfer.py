"""Test SimKD's parts that stay with the student: they are predicted with, saved, exported and counted."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import needs_onnx, trainer
from torch import Tensor

from hsakd_pl import DigitsDataModule, create_network, export_student, load_student, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.export import student_from_checkpoint
from hsakd_pl.methods import SimKDModule, SRRLModule, simkd_logits
from hsakd_pl.networks import Network, NetworkOutput, as_network
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.networks.transfer import Shrink, add_transfer
from hsakd_pl.records.summary import introduction

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(network: Any = "resnet8", teacher: Any = "resnet14", **options: Any) -> SimKDModule:
    torch.manual_seed(0)
    weights = {"teacher_weights": "random"} if isinstance(teacher, str) else {}
    defaults = {"num_classes": 10, "image_size": 16, "lr": 0.01}
    return SimKDModule(network, teacher, **weights, **defaults | options)


def fit(module: SimKDModule, folder: Path | None = None, **options: Any) -> pl.Trainer:
    run = trainer(folder, limit_train_batches=2, limit_val_batches=1, **options)
    run.fit(module, datamodule=DigitsDataModule(batch_size=8, seed=0))
    return run


def map_of_student(module: SimKDModule, images: Tensor) -> Tensor:
    """Return the student's last map, which is given to the transfer block."""
    *features, _ = module.network.forward_features(images)
    for name, layer in module.network.stages[-1].named_children():
        if name not in ("shrink", "transfer"):
            features[-1] = layer(features[-1])
    return features[-1]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("wrn_16_2", "shufflenetv1"), ("shufflenetv2", "wrn_16_2"), ("mobilenetv2", "resnet14"), ("vgg8", "vgg13")],
)
def test_prediction_is_the_teachers_head_on_the_transferred_map(student: str, teacher: str) -> None:
    """Pair maps of equal and unequal sizes, and heads with and without layers before their pooling."""
    module = make(student, teacher, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    head = module.teacher.network.linear_head
    size = module.teacher(images).pooled_map.shape[2]
    transfer = module.network.stages[-1].transfer
    expected = simkd_logits(map_of_student(module, images), transfer, head.weight, head.bias, size)
    torch.testing.assert_close(module(images), expected)
    loss = module.train().training_step((images, torch.arange(2)), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None for weight in module.parameters() if weight.requires_grad)
    assert {name for name, weight in module.named_parameters() if not weight.requires_grad} == {
        "networks.0.head.fc.weight",
        "networks.0.head.fc.bias",
    }


def test_training_leaves_the_teachers_head_as_it_is(tmp_path: Path) -> None:
    module = make()
    before = {name: weight.clone() for name, weight in module.network.state_dict().items()}
    fit(module, tmp_path, max_epochs=2)
    after = module.network.state_dict()
    for name in ("head.fc.weight", "head.fc.bias"):
        assert torch.equal(after[name], before[name])
        expected = getattr(module.teacher.network.linear_head, name.rpartition(".")[2])
        assert torch.equal(after[name], expected)
    assert not torch.equal(after["stages.3.transfer.0.weight"], before["stages.3.transfer.0.weight"])
    assert not torch.equal(after["stem.conv1.weight"], before["stem.conv1.weight"])


def test_checkpoint_names_and_holds_the_parts(tmp_path: Path) -> None:
    module = make()
    fit(module, tmp_path)
    module.eval()
    checkpoint = tmp_path / "last.ckpt"
    name = torch.load(checkpoint, weights_only=True)["networks"][0]
    assert name == module.network.name == "resnet8+transfer:64:4:2"
    network = load_weights(create_network(name, 10, branches=False), checkpoint).eval()
    torch.testing.assert_close(network(IMAGES), module(IMAGES))
    student = student_from_checkpoint(checkpoint)
    torch.testing.assert_close(student.network(IMAGES), module(IMAGES))
    again = SimKDModule.load_from_checkpoint(checkpoint).eval()
    torch.testing.assert_close(again(IMAGES), module(IMAGES))


@needs_onnx
def test_exports_of_every_format_hold_the_parts(tmp_path: Path) -> None:
    module = make(factor=4)
    fit(module, tmp_path / "run")
    module.eval()
    export = export_student(tmp_path / "run", tmp_path / "exported")
    assert {file.path.name for file in export.files} == {"model.safetensors", "model.pt2", "model.onnx"}
    student = load_student(tmp_path / "exported")
    torch.testing.assert_close(student.network(IMAGES), module(IMAGES))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"{sum(weight.numel() for weight in module.network.parameters()):,}" in card
    assert f"{multiply_adds(module.network, 16):,} per image" in card


def test_parts_are_counted_as_the_students(capsys: pytest.CaptureFixture[str]) -> None:
    """Count by hand: the block of 64 -> 32 -> 32 -> 64 channels at 4 x 4 positions, with norms, instead of nothing."""
    module = make()
    plain = create_network("resnet8", 10, branches=False)
    block = 64 * 32 + 32 * 32 * 9 + 32 * 64
    norms = 2 * (32 + 32 + 64)
    parameters = sum(weight.numel() for weight in module.network.parameters())
    assert parameters == sum(weight.numel() for weight in plain.parameters()) + block + norms
    assert multiply_adds(module.network, 16) == multiply_adds(plain, 16) + 16 * block
    run = fit(module)
    lines = dict(introduction(run, module))
    assert lines["network"].startswith(f"resnet8+transfer:64:4:2: {parameters / 1e6:.2f} M parameters")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_evaluation_needs_no_teacher(tmp_path: Path) -> None:
    """Test a checkpoint whose teacher's file is gone: the head comes from the checkpoint."""
    torch.manual_seed(1)
    teacher = create_network("resnet14", 10, branches=False)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    options = {"num_classes": 10, "image_size": 16, "teacher_weights": str(tmp_path / "teacher.pth")}
    module = SimKDModule("resnet8", "resnet14", **options)
    torch.testing.assert_close(module.network.linear_head.weight, teacher.linear_head.weight)
    fit(module, tmp_path)
    expected = module.eval()(IMAGES)
    (tmp_path / "teacher.pth").unlink()
    again = SimKDModule("resnet8", "resnet14", **options)
    run = trainer(limit_test_batches=1)
    run.test(again, DigitsDataModule(batch_size=8), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    torch.testing.assert_close(again.eval()(IMAGES), expected)


def test_initial_weights_go_into_the_students_body(tmp_path: Path) -> None:
    torch.manual_seed(2)
    student = create_network("resnet8", 10, branches=False)
    torch.save(student.state_dict(), tmp_path / "student.pth")
    module = make(weights=str(tmp_path / "student.pth"))
    for name, weight in student.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(module.network.state_dict()[name], weight), name


def test_network_objects_are_changed_in_place() -> None:
    student = create_network("resnet8", 10, branches=False)
    module = make(student, create_network("resnet14", 10, branches=False))
    assert module.network is student
    assert student(IMAGES).shape == (4, 10)
    assert isinstance(student.stages[-1].shrink, Shrink)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8+transfer:64:4:2", "a network with a transfer block has no branches"),
        ("resnet8+transfer:64:4:3", "factor must be a divisor of the teacher's 64 channels, got 3"),
        ("resnet8+transfer:64:4:0", "factor must be a divisor of the teacher's 64 channels, got 0"),
        ("resnet8+transfer:0:4:2", "channels must be at least 1, got 0"),
        ("resnet8+transfer:64:0:2", "side must be at least 1, got 0"),
        ("resnet8+transfer:64:4:2+transfer:64:4:2", "unknown network 'resnet8.transfer:64:4:2'"),
        ("resnet8+transfer:64:4", "unknown network"),
        ("resnet9+transfer:64:4:2", "unknown network 'resnet9'"),
    ],
)
def test_invalid_names_raise_usage_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_network(name, 10, branches="branches" in message)


class Plain(torch.nn.Module):
    """Return only logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_networks_without_maps_raise_usage_error() -> None:
    resnet = create_network("resnet8", 3, branches=False)
    for pair in ((resnet, Plain()), (Plain(), resnet)):
        with pytest.raises(UsageError, match="Classifier returns no pooled_map to distill"):
            make(*pair, num_classes=3)
    with pytest.raises(UsageError, match="network: Classifier takes no transfer block"):
        add_transfer(as_network(Plain(), 3), 64, 4, 2)
    with pytest.raises(UsageError, match=r"network: resnet8\+transfer:64:4:2 takes no transfer block"):
        make("resnet8+transfer:64:4:2")
    with pytest.raises(UsageError, match="factor must be a divisor"):
        make(factor=3)


def test_srrl_without_a_linear_head_raises_usage_error() -> None:
    """Give the teacher an embedding, but no head that is named: the error comes before the first step."""

    class Embedding(Network):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

        def outputs(self, images: Tensor) -> NetworkOutput:
            return NetworkOutput(self(images), [], [], self(images))

    student = create_network("resnet8", 3, branches=False)
    with pytest.raises(UsageError, match="network: Embedding names no linear_head"):
        SRRLModule(student, Embedding(3), image_size=16)
