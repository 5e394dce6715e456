"""Test that the head of a network is the layers that return its logits, whatever their order and names."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from small import error_of, run
from torch import Tensor
from torch.optim import SGD, lr_scheduler
from torch.optim.swa_utils import SWALR

from hsakd_pl import (
    BaselineModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    create_network,
    load_weights,
)
from hsakd_pl.errors import UsageError
from hsakd_pl.export.formats import trace
from hsakd_pl.export.student import Student
from hsakd_pl.methods import KDModule, SSKDModule
from hsakd_pl.networks import Network, StagedBackbone, as_network

CLASSES = 3


class HeadFirst(nn.Module):
    """Register the head first, and a projection that the logits do not need last."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(8, classes)
        self.stem = nn.Conv2d(3, 8, 3)
        self.projector = nn.Linear(8, classes)

    def embed(self, images: Tensor) -> Tensor:
        return self.stem(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))


class Convolutional(HeadFirst):
    """Return logits by a 1x1 convolution, pooled afterwards."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.head = nn.Conv2d(8, classes, 1)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images)).relu().mean((2, 3))


class Normalised(HeadFirst):
    """Scale the logits by a learnt temperature, and normalise them."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.norm = nn.LayerNorm(classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(super().forward(images)) * self.scale


class Prototypes(HeadFirst):
    """Compare with prototypes, a parameter of the network itself."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.prototypes = nn.Parameter(torch.ones(classes, 8))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.embed(images), F.normalize(self.prototypes))


class WeightNormed(HeadFirst):
    """Compute the head's weight from its norm and direction."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.head = nn.utils.parametrizations.weight_norm(self.head)


class TwoHeads(HeadFirst):
    """Average two heads."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.second = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.embed(images)
        return (self.head(features) + self.second(features)) / 2


class ValueDependent(HeadFirst):
    """Look at the values of the images, so that it does not run on the meta device."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.mean()) < 1 else images - 1)


class OwnBackbone(StagedBackbone):
    """A backbone whose head ends in dropout."""

    def __init__(self, num_classes: int) -> None:
        stem = nn.Conv2d(3, 4, 3, padding=1)
        super().__init__(stem, channels=(4, 4, 8), strides=(1, 1, 2), num_classes=num_classes)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        return nn.Conv2d(in_channels, self.channels[stage], 3, stride, padding=1)

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs), nn.Dropout())


HEADS: dict[Callable[[int], nn.Module], set[str]] = {
    HeadFirst: {"head"},
    Convolutional: {"head"},
    Normalised: {"head", "norm", "scale"},
    Prototypes: {"prototypes"},
    WeightNormed: {"head"},
    TwoHeads: {"head", "second"},
    ValueDependent: {"head"},
    OwnBackbone: {"head.2"},
}


@pytest.mark.parametrize(("kind", "head"), HEADS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_head_of_own_network_is_what_returns_its_logits(kind: Callable[[int], nn.Module], head: set[str]) -> None:
    network = as_network(kind(CLASSES), CLASSES)
    (layers,) = network.output_layers
    assert {layer.removeprefix("network.") for layer in layers} == head


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "mobilenetv2", "vgg8"])
def test_heads_of_branches_are_their_last_layers(name: str) -> None:
    network = create_network(name, CLASSES)
    class_head, *branch_heads = network.output_layers
    assert len(branch_heads) == len(network.branches)
    heads = [class_head, *branch_heads]
    widths = [[network.get_parameter(f"{path}.weight").shape[0] for path in head] for head in heads]
    assert widths == [[CLASSES]] + [[4 * CLASSES]] * len(branch_heads)


@pytest.mark.parametrize("kind", [HeadFirst, Convolutional, TwoHeads, Normalised, Prototypes])
def test_new_head_keeps_only_the_layers_of_the_logits_fresh(kind: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    source: Any = kind(5)
    source.projector = nn.Linear(8, CLASSES)
    if kind is Prototypes:
        source.head = nn.Linear(8, CLASSES)  # is not its head
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    network = as_network(kind(CLASSES), CLASSES)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_weights(network, source.state_dict(), new_head=True)
    fresh = {key for key, tensor in network.state_dict().items() if torch.equal(before[key], tensor)}
    assert {key.split(".")[1] for key in fresh} == HEADS[kind]


@pytest.mark.parametrize("kind", [HeadFirst, Convolutional, TwoHeads, Prototypes, WeightNormed])
def test_backbone_lr_leaves_the_head_its_own_rate(kind: Callable[[int], nn.Module]) -> None:
    module = BaselineModule(kind(CLASSES), num_classes=CLASSES, lr=0.1, backbone_lr=0.01)
    head, backbone = module.configure_optimizers()["optimizer"].param_groups
    names = {parameter: name.removeprefix("network.") for name, parameter in module.network.named_parameters()}
    assert {names[parameter].split(".")[0] for parameter in head["params"]} == HEADS[kind]
    assert (head["lr"], backbone["lr"]) == (0.1, 0.01)
    assert len(head["params"]) + len(backbone["params"]) == len(names)


@pytest.mark.parametrize("kind", [HeadFirst, Convolutional, TwoHeads, WeightNormed])
def test_probe_reads_what_the_head_reads(kind: Callable[[int], nn.Module]) -> None:
    network = kind(CLASSES).eval()
    module = LinearProbeModule(network, num_classes=4, source_classes=CLASSES)
    images = torch.randn(2, 3, 8, 8)
    features = module.encode(images).flatten(1)
    stem: Any = network.stem
    expected = stem(images).relu().mean((2, 3)) if kind is Convolutional else stem(images).mean((2, 3))
    torch.testing.assert_close(features, expected)
    assert module.network.classifier.in_features == 8


TIMM_HEADS = {
    "deit_tiny_distilled_patch16_224": {"head", "head_dist"},
    "resnet10t": {"head.fc"},
    "dla46_c": {"fc"},
}


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "dla46_c", "resnet10t"])
def test_heads_of_timm_are_those_that_timm_names(name: str) -> None:
    pytest.importorskip("timm")
    network = create_network(f"timm:{name}", CLASSES, branches=False)
    (layers,) = network.output_layers
    assert {layer.removeprefix("network.") for layer in layers} == TIMM_HEADS[name]
    probe = LinearProbeModule(network, num_classes=4)
    assert not [path for path, layer in probe.network.features.named_modules() if f"network.{path}" in layers]
    module = BaselineModule(network, num_classes=CLASSES, lr=0.1, backbone_lr=0.01)
    head, _ = module.configure_optimizers()["optimizer"].param_groups
    assert len(head["params"]) == 2 * len(layers)


def state_of(network: nn.Module) -> list[Any]:
    return [*(layer.training for layer in network.modules()), *(p.grad for p in network.parameters())]


@pytest.mark.parametrize(
    "measure",
    [
        lambda network: network.output_layers,
        lambda network: network.shapes(32),
        lambda network: LinearProbeModule(network, num_classes=4),
        lambda network: load_weights(network, create_network("resnet8", 5, branches=False).state_dict(), new_head=True),
    ],
    ids=["output_layers", "shapes", "probe", "load_weights"],
)
def test_measuring_a_network_changes_nothing(measure: Callable[[Network], Any]) -> None:
    network = create_network("resnet8", CLASSES, branches=False)
    network.stem.eval()
    before = state_of(network)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}
    is_loading = "load_weights" in str(measure.__code__.co_names)
    random = torch.get_rng_state()
    measure(network)
    assert state_of(network) == before
    if not is_loading:
        assert torch.equal(torch.get_rng_state(), random) or "LinearProbeModule" in str(measure.__code__.co_names)
        assert all(torch.equal(buffer, network.get_buffer(name)) for name, buffer in buffers.items())


@pytest.mark.parametrize("name", ["lcnet_050", "resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("branches", [False, True])
def test_created_timm_network_is_in_train_mode(name: str, branches: bool) -> None:
    timm = pytest.importorskip("timm")
    if branches and name != "lcnet_050":
        pytest.skip("has no branches")
    torch.manual_seed(0)
    network = create_network(f"timm:{name}", CLASSES, branches=branches)
    assert all(layer.training for layer in network.modules())
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=CLASSES).state_dict()
    if not branches:
        assert all(any(torch.equal(w, own) for own in network.state_dict().values()) for w in expected.values())


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": partial(lr_scheduler.StepLR, step_size=2),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=5),
    "cosine_with_floor": partial(lr_scheduler.CosineAnnealingLR, T_max=5, eta_min=1e-4),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=1),
    "polynomial": partial(lr_scheduler.PolynomialLR, total_iters=5),
    "lambda": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "one_cycle_by_group": partial(lr_scheduler.OneCycleLR, max_lr=[0.1, 0.01], total_steps=10),
    "restarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "exponential": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "constant": partial(lr_scheduler.ConstantLR, total_iters=2),
    "linear": partial(lr_scheduler.LinearLR, total_iters=3),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)],
        [2],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "cyclic_by_group": partial(lr_scheduler.CyclicLR, base_lr=[0.01, 0.001], max_lr=[0.1, 0.01]),
    "multiplicative": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda epoch: 0.9),
}


def one_cycle_second(optimizer: torch.optim.Optimizer) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, total_iters=2)
    cycle = lr_scheduler.CyclicLR(optimizer, 0.001, 0.2, step_size_up=2)
    return lr_scheduler.SequentialLR(optimizer, [warmup, cycle], [2])


OVERWRITING: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
    "SequentialLR": one_cycle_second,
    "SWALR": partial(SWALR, swa_lr=0.05, anneal_epochs=4),
}


def fine_tuned(schedule: Any, **options: Any) -> BaselineModule:
    return BaselineModule(HeadFirst(), num_classes=CLASSES, lr=0.1, backbone_lr=0.01, lr_scheduler=schedule, **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_keep_their_rates_under_a_schedule(schedule: str) -> None:
    optimizer = fine_tuned(SCHEDULES[schedule]).configure_optimizers()["optimizer"]
    head, backbone = (group["lr"] for group in optimizer.param_groups)
    assert backbone == pytest.approx(head / 10)


@pytest.mark.parametrize("schedule", OVERWRITING)
def test_schedule_that_overwrites_the_rates_of_groups_is_refused(schedule: str) -> None:
    with pytest.raises(UsageError, match=f"backbone_lr has no effect: {schedule} sets"):
        fine_tuned(OVERWRITING[schedule]).configure_optimizers()
    with pytest.raises(UsageError, match=f"backbone_lr has no effect: {schedule} sets"):
        fine_tuned(OVERWRITING[schedule], optimizer=partial(SGD, lr=0.1, momentum=0.9)).configure_optimizers()


@pytest.mark.parametrize("kind", ["Muon", "LBFGS"])
def test_optimizer_that_refuses_the_parameters_is_named(kind: str) -> None:
    optimizer = getattr(torch.optim, kind, None)
    if optimizer is None:
        pytest.skip(f"this PyTorch has no {kind}")
    options = {"backbone_lr": 0.01} if kind == "LBFGS" else {}
    module = BaselineModule(HeadFirst(), num_classes=CLASSES, optimizer=partial(optimizer, lr=0.1), **options)
    with pytest.raises(UsageError, match=f"optimizer: {kind} "):
        module.configure_optimizers()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimizer", "torch.optim.Muon"), "optimizer: torch.optim"),
        (
            ("--optimizer", "SGD", "--optimizer.lr", "0.1", "--model.init_args.backbone_lr", "0.01"),
            "backbone_lr has no",
        ),
    ],
    ids=["muon", "backbone_lr"],
)
def test_optimizer_of_the_command_line_that_does_not_fit_is_one_line(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "Muon" in options[1] and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    monkeypatch.chdir(tmp_path)
    assert error_of(capsys, lambda: run("fit", *options)).startswith(message)


def test_frozen_parts_of_a_network_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    network = HeadFirst()
    network.stem.requires_grad_(False)
    with caplog.at_level("INFO"):
        BaselineModule(network, num_classes=CLASSES).configure_optimizers()
    assert "2 parameters are frozen and are not trained: networks.0.network.stem.weight" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        LinearProbeModule(HeadFirst(), num_classes=4, source_classes=CLASSES).configure_optimizers()
    assert "are frozen" not in caplog.text


class TwoOutputs(HeadFirst):
    """Return the embedding next to the logits."""

    def forward(self, images: Tensor) -> Any:
        features = self.embed(images)
        return self.head(features), features


class MoreDimensions(HeadFirst):
    """Return logits of every position."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind", [TwoOutputs, MoreDimensions, partial(HeadFirst, 4)])
@pytest.mark.parametrize("use", ["forward", "outputs", "classify", "train"])
def test_network_that_returns_no_logits_is_refused(kind: Callable[[], nn.Module], use: str) -> None:
    module = BaselineModule(kind(), num_classes=CLASSES)
    images = torch.randn(2, 3, 8, 8)
    uses: dict[str, Callable[[], Any]] = {
        "forward": lambda: module(images),
        "outputs": lambda: module.network.outputs(images),
        "classify": lambda: module.classify(0, images),
        "train": lambda: module.training_step((images, torch.zeros(2, dtype=torch.long)), 0),
    }
    with pytest.raises(UsageError, match=r"instead of logits \(2, 3\): (set num_classes|wrap it)"):
        uses[use]()


def test_network_that_cannot_be_traced_is_refused_in_one_line() -> None:
    student = Student(ValueDependent(), ["a", "b", "c"], 8, 8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UsageError, match="formats: pt2 and onnx need the graph of") as error:
        trace(student, torch.zeros(2, 3, 8, 8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", ["teacher", "backbone", "peers"])
def test_networks_that_share_weights_are_refused(share: str) -> None:
    network = create_network("resnet8", CLASSES)
    uses: dict[str, Callable[[], Any]] = {
        "teacher": lambda: StudentModule(network, network, num_classes=CLASSES),
        "backbone": lambda: KDModule(network.without_branches, network, num_classes=CLASSES),
        "peers": lambda: MutualModule([network, network], num_classes=CLASSES),
    }
    with pytest.raises(UsageError, match=r"share .* weights .*pass copy\.deepcopy"):
        uses[share]()


@pytest.mark.parametrize("kind", [StudentModule, KDModule, SSKDModule])
def test_module_whose_network_became_a_teacher_is_refused_in_fit(kind: Any) -> None:
    module = BaselineModule("resnet8", num_classes=CLASSES)
    teacher = create_network("resnet8", CLASSES)
    if kind is StudentModule:
        module = TeacherModule(teacher, num_classes=CLASSES)
    else:
        teacher = module.network
    options = {"projection_weights": "random"} if kind is SSKDModule else {}
    kind("resnet8", teacher, num_classes=CLASSES, **options)
    with pytest.raises(UsageError, match=f"{type(module).__name__} has nothing to train, .* its teacher"):
        module.configure_optimizers()
