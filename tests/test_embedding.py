"""Test the distillation of embeddings: teachers of any kind, losses, validation, resuming, export and what follows."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import CLASSES, Losses, error_of, history, run, trainer
from torch import Tensor, nn

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    EmbeddingModule,
    LinearProbeModule,
    create_network,
    export_student,
    load_student,
)
from hsakd_pl.cli.main import main
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.errors import UsageError
from hsakd_pl.modules.embedding import build_teacher, cosine_loss, map_loss, scaled_error
from hsakd_pl.modules.neighbours import knn_accuracy, linear_accuracy
from hsakd_pl.networks.encoder import Encoder

WIDTH = 12
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = {"teacher_mean": "data"}


class Small(ImageDataModule):
    """Images of 16 x 16 pixels, 12 for training and 8 for testing, with labels or without."""

    image_size = 16
    mean = std = (0.5, 0.5, 0.5)
    train_transform = PadCropFlip(padding=1)

    def __init__(self, labelled: bool = True, **options: Any) -> None:
        super().__init__(batch_size=4, num_workers=0, **options)
        self.num_classes = CLASSES

    def read(self, train: bool) -> Split:
        count = 12 if train else 8
        labels = torch.arange(count) % CLASSES
        images = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(count))
        return Split((images // 2 + 30 * labels[:, None, None, None]).to(torch.uint8), labels)


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels as tokens of width 12, after ``prefix`` others."""

    def __init__(self, prefix: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, prefix, WIDTH))

    def forward(self, images: Tensor) -> Any:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(images), -1, -1), patches], 1)


class Output(nn.Module):
    """Return what a function makes of tokens, as DINOv2 and the models of transformers do."""

    def __init__(self, form: Callable[[Tensor], Any], config: Any = None) -> None:
        super().__init__()
        self.tokens = Tokens()
        self.form = form
        self.config = config

    def forward(self, images: Tensor) -> Any:
        return self.form(self.tokens(images))


class DINO(Output):
    """Return class logits when called, and named tokens from ``forward_features``, as torch.hub's DINOv2 does."""

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.tokens(images)
        return {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, 1:]}


class Swin(nn.Module):
    """Return a map with channels last, as timm's Swin does."""

    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).permute(0, 2, 3, 1)


POOLER = {"last_hidden_state": None, "pooler_output": None}
KINDS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "embedding": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, WIDTH)), {"pooled"}),
    "map": (lambda: nn.Conv2d(3, WIDTH, 4, stride=4), {"pooled", "map"}),
    "map with channels last": (Swin, {"pooled", "map"}),
    "tokens": (Tokens, {"class_token", "patch_mean", "map"}),
    "tokens with registers": (lambda: Tokens(5), {"class_token", "patch_mean", "map"}),
    "tokens of patches alone": (lambda: Tokens(0), {"patch_mean", "map"}),
    "DINOv2": (lambda: DINO(lambda tokens: tokens[:, 0, :2]), {"class_token", "patch_mean", "map"}),
    "transformers": (
        lambda: Output(lambda tokens: {"last_hidden_state": tokens, "pooler_output": tokens[:, 0].tanh()}),
        {"pooled", "class_token", "patch_mean", "map"},
    ),
    "transformers with registers": (
        lambda: Output(
            lambda tokens: {"last_hidden_state": torch.cat([tokens[:, :1], tokens], 1)},
            SimpleNamespace(num_register_tokens=1),
        ),
        {"class_token", "patch_mean", "map"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_any_module_have_their_names_and_shapes(kind: str) -> None:
    make, expected = KINDS[kind]
    network = make()
    for part in ("pooled", "class_token", "patch_mean"):
        if part not in expected:
            with pytest.raises(UsageError, match=f"teacher_embedding: .* has no {part}: choose"):
                Encoder(network, part, 16)
            continue
        output = Encoder(network, part, 16).outputs(IMAGES)
        assert output.embedding.shape == (3, WIDTH)
    output = Encoder(network, None, 16).outputs(IMAGES)
    assert [feature_map.shape for feature_map in output.features] == [(3, WIDTH, 4, 4)] * ("map" in expected)
    assert Encoder(network, None, 16).num_classes == WIDTH


def test_patches_become_a_map_in_their_order() -> None:
    network = Tokens(5)
    output = Encoder(network, "patch_mean", 16).outputs(IMAGES)
    assert torch.equal(output.features[0], network.patches(IMAGES))
    assert torch.allclose(output.embedding, network.patches(IMAGES).mean((2, 3)), atol=1e-6)


TIMM = {
    "timm:test_vit": ("class_token", 64, 160),
    "timm:test_resnet": ("pooled", 0, 160),
    "timm:test_efficientnet": ("pooled", 0, 160),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_teacher_equals_timm_at_its_size_interpolation_and_normalisation(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm:"), num_classes=0).eval()
    module = EmbeddingModule("resnet8", name, teacher_weights="random", fast=False)
    module.teacher.network.network.load_state_dict(model.state_dict())
    data = Small()
    run_once(module, data)
    config = model.pretrained_cfg
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    resized = F.interpolate(images, config["input_size"][1:], mode=config["interpolation"])
    expected = model((resized - mean) / std)
    found = module.teacher((images - 0.5) / 0.5)
    assert torch.allclose(found.embedding, expected, atol=1e-4)
    assert found.features[0].dim() == 4


def run_once(module: EmbeddingModule, data: Any, **options: Any) -> Any:
    fit = trainer(limit_train_batches=1, limit_val_batches=0, num_sanity_val_steps=0, **options)
    fit.fit(module, data)
    return fit


def test_weights_of_a_classifier_load_into_a_headless_timm_teacher(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    whole = timm.create_model("test_vit", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    teacher, files = build_teacher("timm:test_vit", str(tmp_path / "vit.pth"), 100)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    assert files["teacher_weights"].sha256 is not None


def test_own_size_of_the_student_leaves_the_teacher_the_images_of_the_data() -> None:
    sizes: dict[str, int] = {}
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = nn.Sequential(nn.Conv2d(3, WIDTH, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher.register_forward_pre_hook(lambda _, inputs: sizes.update(teacher=inputs[0].shape[-1]))
    student.register_forward_pre_hook(lambda _, inputs: sizes.update(student=inputs[0].shape[-1]))
    module = EmbeddingModule(student, teacher, student_size=8, fast=False, **DATA)
    run_once(module, Small())
    assert sizes == {"teacher": 16, "student": 8}
    assert module.description is not None and module.description.image_size == 8


def test_losses_are_those_of_the_formulas() -> None:
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    cosines = (student * teacher).sum(1) / student.norm(dim=1) / teacher.norm(dim=1)
    assert torch.isclose(cosine_loss(student, teacher), 1 - cosines.mean())
    scale = teacher.square().mean().sqrt()
    assert torch.isclose(scaled_error(student, teacher), (student - teacher / scale).square().mean())
    assert torch.isclose(scaled_error(student, 9 * teacher), scaled_error(student, teacher))
    maps = torch.randn(2, 3, 7, 4, 4, dtype=torch.float64)
    scale = maps[0].square().mean().sqrt()
    assert float(map_loss(maps[0] / scale, maps[0])) == pytest.approx(0, abs=1e-6)
    small = F.adaptive_avg_pool2d(maps[0], 2)
    assert float(map_loss(maps[0] / small.square().mean().sqrt(), small)) == pytest.approx(0, abs=1e-6)


def test_training_step_reaches_student_and_projection_alone() -> None:
    module = EmbeddingModule("resnet8", Tokens(), map_weight=0.5, image_size=16, fast=False, **DATA)
    batch = IMAGES, torch.tensor([-1, -1, -1])
    assert set(module.losses(batch)) == {"loss_cosine", "loss_mse", "loss_map"}
    module.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.teacher.network.parameters())
    assert not any("teacher" in name for name in module.state_dict())


def test_neighbours_and_probe_leave_out_the_image_itself() -> None:
    torch.manual_seed(0)
    labels = torch.arange(40) % 3
    embeddings = torch.randn(40, 5) + 1.5 * F.one_hot(labels, 5)
    directions = F.normalize(embeddings)
    correct = 0
    for row in range(40):
        others = torch.arange(40) != row
        cosines = directions[others] @ directions[row]
        nearest = cosines.topk(4)
        votes = torch.zeros(3).index_add_(0, labels[others][nearest.indices], (nearest.values / 0.07).exp())
        correct += int(votes.argmax() == labels[row])
    assert float(knn_accuracy(embeddings, labels, 4)) == pytest.approx(correct / 40)

    values = embeddings.double()
    values = (values - values.mean(0)) / values.std(0, correction=0)
    values = torch.cat([values, torch.ones(40, 1)], 1)
    ridge = 40e-3 * torch.eye(6).double()
    ridge[-1, -1] = 0
    correct = 0
    for row in range(40):
        others = torch.arange(40) != row
        gram = values[others].T @ values[others] + ridge
        weights = torch.linalg.solve(gram, values[others].T @ F.one_hot(labels[others]).double())
        correct += int((values[row] @ weights).argmax() == labels[row])
    assert float(linear_accuracy(embeddings, labels)) == pytest.approx(correct / 40)
    noise = torch.randn(200, 300)
    assert float(linear_accuracy(noise, torch.arange(200) % 2)) < 0.65


def test_fit_logs_accuracies_and_cosine(tmp_path: Path) -> None:
    module = EmbeddingModule("resnet8", "resnet14", teacher_weights="random", lr=0.02, **DATA)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, Small())
    metrics = fit.callback_metrics
    assert metrics.keys() >= {"val/acc", "val/linear_acc", "val/cosine", "val/loss", "train/loss_cosine"}
    assert 0 <= float(metrics["val/acc"]) <= 1
    module = EmbeddingModule("resnet8", "resnet14", teacher_weights="random", lr=0.02, **DATA)
    tested = trainer().test(module, Small(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert tested[0]["test/acc"] == pytest.approx(float(metrics["val/acc"]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_student_comes_nearer_to_its_teacher_in_every_precision(precision: Any) -> None:
    torch.manual_seed(0)
    module = EmbeddingModule("resnet8", "timm:test_resnet", teacher_weights="random", teacher_size=64, lr=0.05)
    losses = Losses()
    trainer(max_epochs=4, limit_val_batches=0, precision=precision, callbacks=[losses]).fit(module, Small())
    assert sum(losses.values[-3:]) < 0.8 * sum(losses.values[:3])


@pytest.mark.parametrize("workers", [0, 2])
def test_run_stopped_inside_an_epoch_resumes_bit_by_bit(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {
        "init_args": {"teacher": "resnet14", "teacher_weights": "random", "teacher_mean": "data", "map_weight": 1.0}
    }
    common = {
        "module": "EmbeddingModule",
        "model": model,
        "data": {"init_args": {"num_workers": workers, "batch_size": 16}},
    }
    limits = {"limit_train_batches": 4, "limit_val_batches": 2, "max_epochs": 2}
    run("fit", trainer={**limits, "default_root_dir": "whole"}, **common)
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 15, "at": 5}}
    with pytest.raises(SystemExit):
        run("fit", trainer={**limits, "default_root_dir": "part", "callbacks": [stop]}, **common)
    run("fit", "--ckpt_path", "last", trainer={**limits, "default_root_dir": "part"}, **common)
    whole, part = (torch.load(f"{folder}/last.ckpt", weights_only=True)["state_dict"] for folder in ("whole", "part"))
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())
    assert history("whole") == history("part")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    module = EmbeddingModule("resnet8", "resnet14", teacher_weights="random", **DATA)
    trainer(tmp_path).fit(module, Small())
    return tmp_path / "last.ckpt"


def test_export_is_an_embedding_network(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_student(trained, tmp_path / "exported", formats=["safetensors", "pt2"], data=Small())
    student = load_student(tmp_path / "exported")
    module = EmbeddingModule.load_from_checkpoint(trained, **DATA, teacher="resnet14", teacher_weights="random")
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = module.eval()((pixels / 255 - 0.5) / 0.5)
    assert student.embeds and torch.allclose(student(pixels), expected, atol=1e-5)
    assert expected.shape == (2, 64)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["embedding"] is True
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "64 numbers of an embedding" in card and "class_names" not in card and "image-feature-extraction" in card
    message = error_of(capsys, lambda: main(["predict", str(tmp_path / "exported"), "tests"]))
    assert "is an embedding network" in message


def test_classifier_and_probe_start_from_the_embedding(trained: Path) -> None:
    saved = torch.load(trained, weights_only=False)["state_dict"]
    classifier = BaselineModule("resnet8", str(trained), num_classes=CLASSES, new_head=True)
    probe = LinearProbeModule("resnet8", CLASSES, str(trained))
    for name, tensor in classifier.network.state_dict().items():
        assert name.startswith("head.fc") or torch.equal(tensor, saved[f"networks.0.{name}"])
    for name, tensor in probe.network.features.state_dict().items():
        assert torch.equal(tensor, saved[f"networks.0.{name}"])
    trainer().fit(classifier, Small())
    again = EmbeddingModule("resnet8", "resnet14", teacher_weights="random", weights=str(trained), **DATA)
    assert torch.equal(again.network.head.fc.weight, saved["networks.0.head.fc.weight"])


def test_student_starts_from_a_classifier(tmp_path: Path) -> None:
    network = create_network("resnet8", 10, branches=False)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "classifier.pth")
    options = {"teacher_weights": "random", "weights": str(tmp_path / "classifier.pth")}
    module = EmbeddingModule("resnet8", "resnet14", **options, **DATA)
    assert torch.equal(module.network.stem[0].weight, network.stem[0].weight)
    assert module.network.head.fc.out_features == 64


class Pair(nn.Module):
    """Return two tensors."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)), images


FAULTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "teacher_mean: nothing says how": (Tokens, {}),
    "teacher_std must be three numbers if teacher_mean is, got None": (Tokens, {"teacher_mean": (0.5, 0.5, 0.5)}),
    "teacher_mean must be imagenet, data or three numbers, got grey": (Tokens, {"teacher_mean": "grey"}),
    "teacher: Pair returns tuple": (Pair, DATA),
    "set its attribute num_prefix_tokens": (lambda: Tokens(4), {**DATA, "teacher_size": 16}),
    "takes no images of 3 channels and 37 x 37 pixels (AssertionError: Input height (37)": (
        lambda: "timm:test_vit",
        {**DATA, "teacher_weights": "random", "teacher_size": 37},
    ),
    "takes no images of 3 channels and the usual sizes (RuntimeError: Given groups=1": (
        lambda: nn.Conv2d(1, 4, 3),
        DATA,
    ),
    "network: the student returns 10 numbers, the teacher's embedding has 64: create the student with num_classes=64": (
        lambda: "resnet14",
        {**DATA, "teacher_weights": "random", "network": create_network("resnet8", 10)},
    ),
    "map_weight: the teacher returns no map": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        {**DATA, "map_weight": 1.0},
    ),
    "teacher_weights: resnet14 would be untrained": (lambda: "resnet14", DATA),
    "unknown network 'timm:no_model'": (lambda: "timm:no_model", {"teacher_weights": "random"}),
    "knn must be at least 1, got 0": (Tokens, {**DATA, "knn": 0}),
    "teacher_embedding must be pooled, of this package's networks, got class_token": (
        lambda: create_network("resnet14", 4),
        {**DATA, "teacher_embedding": "class_token"},
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_options_are_one_line(message: str) -> None:
    teacher, options = FAULTS[message]
    with pytest.raises(UsageError) as error:
        EmbeddingModule(**{"network": "resnet8", "teacher": teacher(), **options})
    assert message in str(error.value) and "\n" not in str(error.value)


class Undefined(nn.Module):
    """Return NaN for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * float("nan")


@pytest.mark.parametrize("fast", [False, True])
def test_teacher_that_answers_nan_is_one_line(fast: bool) -> None:
    module = EmbeddingModule("resnet8", Undefined(), fast=fast, **DATA)
    with pytest.raises(UsageError, match=r"NaN|nan") as error:
        run_once(module, Small())
    assert "\n" not in str(error.value)


def test_missing_teacher_file_is_named_by_fit_alone(trained: Path) -> None:
    options = {"teacher": "resnet14", "teacher_weights": "missing.pth", **DATA}
    module = EmbeddingModule.load_from_checkpoint(trained, **options)
    trainer().test(module, Small(), verbose=False)
    with pytest.raises(UsageError, match=r"missing\.pth does not exist"):
        trainer().fit(EmbeddingModule("resnet8", **options), Small())


def test_prediction_of_classes_is_refused(trained: Path) -> None:
    module = EmbeddingModule.load_from_checkpoint(trained, teacher="resnet14", teacher_weights="random", **DATA)
    with pytest.raises(UsageError, match="predicts no classes"):
        trainer().predict(module, DigitsDataModule().plain_loader(Small().read(False)))
