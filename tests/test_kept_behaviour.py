"""Test that networks that people bring keep their behaviour, weights and batch, or that one line says otherwise."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from small import BATCH, CLASSES, loader, trainer
from torch import Tensor
from torch.nn import Parameter

from hsakd_pl import BaselineModule, MutualModule, StudentModule, create_network, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import KDModule
from hsakd_pl.networks import StagedBackbone, as_network
from hsakd_pl.networks.cost import multiply_adds

WIDTH = 16


# Dropout and other behaviour that only training shows

CUT = [
    "ghostnet_050",
    "ghostnetv2_100",
    pytest.param("ghostnetv3_050", marks=pytest.mark.nightly),
    pytest.param("repghostnet_050", marks=pytest.mark.nightly),
    "lcnet_050",
]


@pytest.mark.parametrize("name", CUT)
def test_timm_model_trains_as_timm_trains_it(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'hsakd_pl[timm]'")
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    own = timm.create_model(name, num_classes=CLASSES).train()
    before = torch.get_rng_state()
    network = load_weights(create_network(f"timm:{name}", CLASSES, branches=False), own.state_dict()).train()
    assert isinstance(network, StagedBackbone)
    torch.set_rng_state(before)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = []
    for model in (network, own):
        torch.manual_seed(0)
        logits.append(model(images))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


class Model(nn.Module):
    """A model like timm's, with a part that acts in training alone."""

    def __init__(self, part: str, drop_rate: float) -> None:
        super().__init__()
        self.part = part
        self.drop_rate = drop_rate
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        for number in range(1, 5):
            norm = nn.BatchNorm2d(WIDTH)
            layers = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), norm, nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU())
            setattr(self, f"stage{number}", layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Linear(WIDTH, CLASSES)
        self.feature_info = [{"module": f"stage{n}", "num_chs": WIDTH, "reduction": 2**n} for n in range(1, 5)]
        self.pretrained_cfg = {"classifier": "fc", "input_size": (3, 64, 64)}

    def forward(self, images: Tensor) -> Tensor:
        features = self.stage1(self.stem(images))
        if self.part == "maps":
            features = F.dropout2d(features, 0.2, self.training)
        if self.part == "noise" and self.training:
            features = features + torch.randn_like(features)
        if self.part == "scale" and self.training:
            features = 0.5 * features
        embedding = self.pool(self.stage4(self.stage3(self.stage2(features))))
        if self.part == "embedding":
            embedding = F.dropout(embedding, self.drop_rate, self.training)
        return self.fc(embedding)


@pytest.mark.parametrize(
    ("part", "is_cut"), [("maps", False), ("noise", False), ("scale", False), ("embedding", True), ("", True)]
)
def test_model_whose_layers_alone_train_otherwise_is_not_cut(part: str, is_cut: bool) -> None:
    from hsakd_pl.networks.cut import UncutError, in_sequence, measured_parts

    model = Model(part, 0.5)
    if not is_cut:
        with pytest.raises(UncutError, match="other logits in training"):
            measured_parts(model, "own")
    else:
        expected = copy.deepcopy(model)  # measured_parts takes the classifier out
        parts, *_ = measured_parts(model, "own")
        network = nn.Sequential(*map(in_sequence, parts))
        torch.manual_seed(0)
        found = network.train()(BATCH[0].repeat(1, 1, 4, 4))
        torch.manual_seed(0)
        assert all(int(tensor) == 1 for name, tensor in network.named_buffers() if name.endswith("num_batches_tracked"))
        torch.testing.assert_close(found, expected(BATCH[0].repeat(1, 1, 4, 4)))


# Networks that change their input


class InPlace(nn.Module):
    """Normalise the images in place."""

    def __init__(self, way: str = "sub_") -> None:
        super().__init__()
        self.way = way
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        if self.way == "sub_":
            images.sub_(5)
        elif self.way == "relu_":
            F.relu_(images)
        else:
            images[:, :, :2] = 7.0
        return self.fc(images.mean((2, 3)))


class StagedInPlace(StagedBackbone):
    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(nn.ReLU(inplace=True), (3, WIDTH), (1, 1), num_classes)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        return nn.Conv2d(in_channels, WIDTH, 3, padding=1)

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_outputs))


class Seen(nn.Module):
    """Keep the images of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)
        self.images = torch.zeros(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images.detach().clone()
        return self.fc(images.mean((2, 3)))


CHANGING: dict[str, Callable[[], nn.Module]] = {
    "subtraction": InPlace,
    "relu": lambda: InPlace("relu_"),
    "assignment": lambda: InPlace("assignment"),
    "stem": StagedInPlace,
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("changing", CHANGING)
def test_network_that_changes_its_input_leaves_the_batch_to_others(changing: str, fast: bool) -> None:
    images = BATCH[0].clone()
    seen = Seen()
    student = KDModule(CHANGING[changing](), seen, num_classes=CLASSES, fast=fast)
    student.training_step((images, BATCH[1]), 0)
    assert torch.equal(seen.images, BATCH[0]) and torch.equal(images, BATCH[0])
    teacher = KDModule(seen, CHANGING[changing](), num_classes=CLASSES, fast=fast)
    for parameter in seen.parameters():
        parameter.requires_grad_(True)
    teacher.training_step((images, BATCH[1]), 0)
    assert torch.equal(images, BATCH[0])
    peers = MutualModule([CHANGING[changing](), seen], num_classes=CLASSES, joint_ce_weight=0, joint_kd_weight=0)
    peers.training_step((images, BATCH[1]), 0)
    assert torch.equal(seen.images, BATCH[0]) and torch.equal(images, BATCH[0])
    trainer().validate(peers, loader(images), verbose=False)
    assert torch.equal(seen.images, BATCH[0][2:]) and torch.equal(images, BATCH[0])


class Scaled(InPlace):
    """Divide by a fixed number in place, too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.div_(0.25))


class Cropped(InPlace):
    """Change a part of the images, by a view of them."""

    def forward(self, images: Tensor) -> Tensor:
        images[:, :, 1:, 1:].mul_(3)
        return self.fc(images.mean((2, 3)))


@pytest.mark.parametrize("make", [InPlace, Scaled, Cropped])
def test_teacher_that_changes_its_input_answers_for_the_first_batch_too(make: type[InPlace]) -> None:
    teacher = make()
    expected = teacher(BATCH[0].clone())
    module = KDModule(Seen(), teacher, num_classes=CLASSES)
    answers = []

    class Asking(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            answers.append(module.teacher(batch[0]).logits)

    trainer(callbacks=[Asking()]).fit(module, loader())
    torch.testing.assert_close(torch.cat(answers), expected)


# Weights that two networks share


def shared_layer(student: nn.Module, teacher: nn.Module) -> nn.Module:
    teacher.fc = student.fc
    return teacher


def shared_parameter(student: nn.Module, teacher: nn.Module) -> nn.Module:
    teacher.fc.weight = student.fc.weight  # type: ignore[assignment,union-attr]
    return teacher


def shared_memory(student: nn.Module, teacher: nn.Module) -> nn.Module:
    teacher.fc.weight = Parameter(student.fc.weight.data)  # type: ignore[arg-type,union-attr]
    return teacher


def assigned_weights(student: nn.Module, teacher: nn.Module) -> nn.Module:
    teacher.load_state_dict(student.state_dict(), assign=True)
    return teacher


SHARING = [shared_layer, shared_parameter, shared_memory, assigned_weights, lambda student, teacher: student]


@pytest.mark.parametrize("share", SHARING)
def test_weights_shared_by_student_and_teacher_are_named(share: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
    student = Seen()
    teacher = share(student, Seen())
    with pytest.raises(UsageError, match=r"share \d weights? \(.*fc\.weight.*copy\.deepcopy") as error:
        KDModule(student, teacher, num_classes=CLASSES)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in student.parameters())
    KDModule(student, copy.deepcopy(teacher), num_classes=CLASSES)


def test_weights_shared_after_the_module_was_made_stop_the_fit() -> None:
    module = KDModule(Seen(), Seen(), num_classes=CLASSES)
    module.network.network.fc = module.teacher.network.network.fc
    with pytest.raises(UsageError, match=r"share 2 weights \(.*fc\.weight"):
        trainer().fit(module, loader())


# Multiply-adds


class Attention(nn.Module):
    """Attention over the pixels of an 8 x 8 image: 64 tokens."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        if self.way == "function":
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        elif self.way == "query of one":
            tokens = F.scaled_dot_product_attention(tokens[:, None, :1], tokens[:, None], tokens[:, None])[:, 0]
        elif self.way == "multi-head":
            tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        elif self.way == "encoder":
            tokens = self.layer(tokens)
        elif self.way == "lstm":
            tokens, _ = self.lstm(tokens)
        elif self.way == "distances":
            return torch.cdist(tokens, tokens)[:, :CLASSES].mean(2) + self.fc(tokens.mean(1))
        elif self.way == "spectrum":
            return self.fc(torch.fft.rfft(tokens, dim=1).abs().mean(1))
        return self.fc(tokens.mean(1))


TOKENS = 64
BOTH = TOKENS * 3 * WIDTH + WIDTH * CLASSES  # of stem and classifier
# Multiply-adds, and operators that are named as not counted
WAYS: dict[str, tuple[int, str]] = {
    "function": (2 * TOKENS * TOKENS * WIDTH, ""),
    "query of one": (2 * TOKENS * WIDTH, ""),
    "multi-head": (4 * TOKENS * WIDTH**2 + 2 * TOKENS * TOKENS * WIDTH, ""),
    "encoder": (6 * TOKENS * WIDTH**2 + 2 * TOKENS * TOKENS * WIDTH, ""),
    "lstm": (TOKENS * 8 * WIDTH**2, ""),
    "spectrum": (0, "aten::_fft_r2c (1 call)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_multiply_adds_equal_those_of_the_matrix_products(way: str, caplog: pytest.LogCaptureFixture) -> None:
    expected, uncounted = WAYS[way]
    network = as_network(Attention(way).eval(), CLASSES)
    assert multiply_adds(network, 8) == BOTH + expected
    assert torch.backends.mha.get_fastpath_enabled()
    assert (uncounted in caplog.text) if uncounted else ("multiply-adds" not in caplog.text)


def test_operators_of_others_are_named_as_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    @torch.library.custom_op("own_networks::mixed", mutates_args=())
    def mixed(images: Tensor) -> Tensor:
        return images @ images

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(mixed(images).mean((2, 3)))

    assert multiply_adds(as_network(Mixed(), CLASSES), 8) == 3 * CLASSES
    assert "own_networks::mixed (1 call)" in caplog.text


@pytest.mark.parametrize("name", ["cait_xxs24_224", "vit_tiny_patch16_224"])
def test_multiply_adds_of_vision_transformers_count_attention(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'hsakd_pl[timm]'")
    network = create_network(f"timm:{name}", CLASSES, branches=False)
    published = {"cait_xxs24_224": 2.5e9, "vit_tiny_patch16_224": 1.26e9}[name]  # timm's benchmark table
    assert multiply_adds(network, 224) == pytest.approx(published, rel=0.03)


# Averages next to raw weights

FILES: dict[str, tuple[str, Callable[[Any, Any], dict[str, Any]]]] = {
    "ema": ("ema", lambda raw, average: {"model": raw, "ema": average}),
    "timm": ("state_dict_ema", lambda raw, average: {"state_dict": raw, "state_dict_ema": average, "epoch": 3}),
    "wrapped": ("ema_model", lambda raw, average: {"model": raw, "ema_model": {"module": average}}),
    "prefixed": (
        "swa",
        lambda raw, average: {"net": raw, "swa": {f"module.{name}": tensor for name, tensor in average.items()}},
    ),
    "Lightning": ("current_model_state", lambda raw, average: {"state_dict": raw, "current_model_state": average}),
}


@pytest.mark.parametrize("kind", FILES)
def test_file_with_averages_says_which_weights_are_taken_and_can_give_the_others(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry, content = FILES[kind]
    raw, average = (create_network("resnet8", CLASSES, branches=False).state_dict() for _ in range(2))
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in average.items()}
    path = tmp_path / "last.pth"
    torch.save(content(raw, average), path)
    module = BaselineModule("resnet8", weights=str(path), num_classes=CLASSES)
    taken = next(iter(content(raw, average)))
    assert f"holds weights under {taken}, {entry}: those under {taken} are taken" in caplog.text
    assert f"#{entry}" in caplog.text
    caplog.clear()
    averaged = BaselineModule("resnet8", weights=f"{path}#{entry}", num_classes=CLASSES)
    assert "are taken" not in caplog.text
    for name, tensor in raw.items():
        assert torch.equal(module.network.state_dict()[name], tensor)
        assert torch.equal(averaged.network.state_dict()[name], average[name])
    teacher = StudentModule(
        "resnet8", "resnet8", teacher_weights=f"{path}#{entry}", num_classes=CLASSES, joint_kd_weight=0
    ).teacher.network
    assert torch.equal(teacher.state_dict()["head.fc.weight"], average["head.fc.weight"])


def test_unknown_entry_of_a_weight_file_names_those_there_are(tmp_path: Path) -> None:
    weights = create_network("resnet8", CLASSES, branches=False).state_dict()
    path = tmp_path / "last.pth"
    torch.save({"model": weights, "ema": weights, "epoch": 1, "optimizer": {"state": {}}}, path)
    network = create_network("resnet8", CLASSES, branches=False)
    with pytest.raises(UsageError, match=r"last\.pth holds no weights under average: choose one of model, ema$"):
        load_weights(network, f"{path}#average")
    path.rename(tmp_path / "last#1.pth")
    load_weights(network, tmp_path / "last#1.pth")
