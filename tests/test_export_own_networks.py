"""Test that of own networks every file that can be made is exported, with one sentence for what cannot."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from small import BATCH, loader, needs_onnx, trainer
from torch import Tensor

from hsakd_pl import export_student, load_student
from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import KDModule

KNOWN = Description(["ant", "bee", "cow", "dog"], 8, 8, (0.5,) * 3, (0.5,) * 3)


class Own(nn.Module):
    """Classify images; subclasses add what an export cannot or can hardly hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def logits(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images)


class BySum(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images if float(images.sum()) > 0 else -images)


class Repeated(Own):
    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        while logits.abs().max() > 0.01:
            logits = logits / 2
        return logits


class ThroughNumpy(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(torch.from_numpy(images.numpy()))


class Noisy(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images + torch.randn_like(images))


class DroppedOut(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.dropout(self.conv(images).mean((2, 3)), 0.5))


class Scaled(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images) * random.random()


class BatchNormed(Own):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Centred(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images - images.mean(0, keepdim=True))


class Ranked(Own):
    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        return logits / logits.norm()


class Squeezed(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).squeeze()


class Double(Own):
    def __init__(self) -> None:
        super().__init__()
        self.double()


class BFloat16(Own):
    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()


class Half(Own):
    def __init__(self) -> None:
        super().__init__()
        self.half()


class DoubleInside(Own):
    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).double()
        filters = torch.ones(8, 1, 3, 3, dtype=torch.double)
        return self.fc(F.conv2d(features, filters, groups=8).mean((2, 3)).float())


def saved(network: type[Own], folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save(network().state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


GRAPHLESS = {
    BySum: "torch.export cannot trace it",
    Repeated: "torch.export cannot trace it",
    ThroughNumpy: "torch.export cannot trace it",
    Noisy: "differ from call to call",
    DroppedOut: "differ from call to call",
    Scaled: "differ from call to call",
    Squeezed: "it fails for one image alone",
}


@pytest.mark.parametrize("network", GRAPHLESS)
def test_network_without_a_graph_is_exported_as_weights_with_one_sentence(
    network: type[Own], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(network, tmp_path)
    export = export_student(path, tmp_path / "out", ("safetensors", "pt2"), network(), KNOWN)
    assert [file.path.name for file in export.files] == ["model.safetensors"]
    [sentence] = export.left_out
    assert sentence.startswith("only model.safetensors is written: ")
    assert GRAPHLESS[network] in sentence and "\n" not in sentence
    assert len(capfd.readouterr().out.splitlines()) <= 1
    student = load_student(tmp_path / "out", network())
    assert torch.equal(student.network.state_dict()["network.conv.weight"], torch.load(path)["conv.weight"])
    with pytest.raises(UsageError, match=GRAPHLESS[network]):
        export_student(path, tmp_path / "graph", ("pt2",), network(), KNOWN)


@pytest.mark.parametrize("network", [BatchNormed, Centred, Ranked])
def test_network_that_depends_on_the_batch_is_exported_and_named(
    network: type[Own], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    export = export_student(saved(network, tmp_path), tmp_path / "out", ("safetensors", "pt2"), network(), KNOWN)
    assert [file.path.name for file in export.files] == ["model.safetensors", "model.pt2"]
    assert export.left_out == []
    assert "answers for an image depending on the others in its batch" in caplog.text


@pytest.mark.parametrize("network", [Double, BFloat16, Half])
def test_network_of_another_precision_is_exported_in_float32(network: type[Own], tmp_path: Path) -> None:
    export = export_student(saved(network, tmp_path), tmp_path / "out", ("safetensors", "pt2"), network(), KNOWN)
    assert len(export.files) == 2
    student = load_student(tmp_path / "out", network())
    assert student(torch.rand(2, 3, 8, 8)).dtype == torch.float32


class Autocast(Own):
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.logits(images).float()


class BFloat16Inside(Own):
    def forward(self, images: Tensor) -> Tensor:
        filters = torch.ones(3, 1, 3, 3, dtype=torch.bfloat16)
        return self.logits(F.conv2d(images.bfloat16(), filters, padding=1, groups=3).float())


ONNXLESS = {
    DoubleInside: "onnxruntime cannot run its graph (NotImplemented: ",
    Autocast: "onnx does not accept its graph (InferenceError: ",
    BFloat16Inside: "onnx does not accept its graph (InferenceError: ",
}


@needs_onnx
@pytest.mark.parametrize("network", ONNXLESS)
def test_graph_that_onnx_cannot_hold_is_left_out_with_one_sentence(network: type[Own], tmp_path: Path) -> None:
    export = export_student(saved(network, tmp_path), tmp_path / "out", network=network(), description=KNOWN)
    assert [file.path.name for file in export.files] == ["model.safetensors", "model.pt2"]
    assert not (tmp_path / "out" / "model.onnx").exists()
    [sentence] = export.left_out
    assert ONNXLESS[network] in sentence and "\n" not in sentence


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(Own()),
    "compiled": lambda: torch.compile(Own(), backend="eager"),
    "compiled in place": lambda: compiled_in_place(Own()),
}


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_network_is_exported_from_its_checkpoint(kind: str, tmp_path: Path) -> None:
    module = KDModule(WRAPPED[kind](), "resnet8", teacher_weights="random", num_classes=4)
    trainer(tmp_path).fit(module, loader())
    formats = ("safetensors", "pt2")
    export = export_student(tmp_path / "last.ckpt", tmp_path / "out", formats, WRAPPED[kind](), KNOWN)
    assert [file.path.name for file in export.files] == ["model.safetensors", "model.pt2"]
    expected = module.eval().network(2 * BATCH[0] - 1)
    torch.testing.assert_close(load_student(tmp_path / "out", WRAPPED[kind]())(BATCH[0]), expected)
