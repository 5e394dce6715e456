"""Test weight files of RepDistiller (of CRD) and mdistiller, which hold the field's tables.

Keys and shapes are listed here as in those repositories' state dicts, layer by layer; the package's own rules are not
used.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hsakd_pl import create_network, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.networks.keys import published_state_dict

Layer = tuple[str, tuple[int, ...]]
Layers = Iterator[Layer]
State = dict[str, Tensor]


def conv(name: str, inner: int, out: int, kernel: int, groups: int = 1) -> Layers:
    yield f"{name}.weight", (out, inner // groups, kernel, kernel)


def norm(name: str, channels: int) -> Layers:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, inner: int, out: int = 100) -> Layers:
    yield f"{name}.weight", (out, inner)
    yield f"{name}.bias", (out,)


def wrn(depth: int, width: int) -> Layers:
    yield from conv("conv1", 3, 16, 3)
    inner = 16
    for block, out in enumerate((16 * width, 32 * width, 64 * width), 1):
        for unit in range((depth - 4) // 6):
            name = f"block{block}.layer.{unit}"
            yield from norm(f"{name}.bn1", inner)
            yield from conv(f"{name}.conv1", inner, out, 3)
            yield from norm(f"{name}.bn2", out)
            yield from conv(f"{name}.conv2", out, out, 3)
            if inner != out:
                yield from conv(f"{name}.convShortcut", inner, out, 1)
            inner = out
    yield from norm("bn1", inner)
    yield from linear("fc", inner)


def resnet(depth: int, filters: tuple[int, ...] = (16, 16, 32, 64)) -> Layers:
    inner, *widths = filters
    yield from conv("conv1", 3, inner, 3)
    yield from norm("bn1", inner)
    for layer, out in enumerate(widths, 1):
        for unit in range((depth - 2) // 6):
            name = f"layer{layer}.{unit}"
            yield from conv(f"{name}.conv1", inner, out, 3)
            yield from norm(f"{name}.bn1", out)
            yield from conv(f"{name}.conv2", out, out, 3)
            yield from norm(f"{name}.bn2", out)
            if inner != out:
                yield from conv(f"{name}.downsample.0", inner, out, 1)
                yield from norm(f"{name}.downsample.1", out)
            inner = out
    yield from linear("fc", inner)


def resnet50() -> Layers:
    yield from conv("conv1", 3, 64, 3)
    yield from norm("bn1", 64)
    inner = 64
    for layer, (planes, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for unit in range(units):
            name = f"layer{layer}.{unit}"
            yield from conv(f"{name}.conv1", inner, planes, 1)
            yield from norm(f"{name}.bn1", planes)
            yield from conv(f"{name}.conv2", planes, planes, 3)
            yield from norm(f"{name}.bn2", planes)
            yield from conv(f"{name}.conv3", planes, 4 * planes, 1)
            yield from norm(f"{name}.bn3", 4 * planes)
            if unit == 0:
                yield from conv(f"{name}.shortcut.0", inner, 4 * planes, 1)
                yield from norm(f"{name}.shortcut.1", 4 * planes)
            inner = 4 * planes
    yield from linear("linear", inner)


def vgg(convolutions: int) -> Layers:
    inner = 3
    for block, out in enumerate((64, 128, 256, 512, 512)):
        for number in range(convolutions):
            yield from conv(f"block{block}.{3 * number}", inner, out, 3)
            yield f"block{block}.{3 * number}.bias", (out,)
            yield from norm(f"block{block}.{3 * number + 1}", out)
            inner = out
    yield from linear("classifier", inner)


def mobilenetv2() -> Layers:
    yield from conv("conv1.0", 3, 16, 3)
    yield from norm("conv1.1", 16)
    inner = 16
    rows = ((1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1))
    for row, (expansion, out, units) in enumerate(rows):
        for unit in range(units):
            name, width = f"blocks.{row}.{unit}.conv", expansion * inner
            yield from conv(f"{name}.0", inner, width, 1)
            yield from norm(f"{name}.1", width)
            yield from conv(f"{name}.3", width, width, 3, groups=width)
            yield from norm(f"{name}.4", width)
            yield from conv(f"{name}.6", width, out, 1)
            yield from norm(f"{name}.7", out)
            inner = out
    yield from conv("conv2.0", inner, 1280, 1)
    yield from norm("conv2.1", 1280)
    yield from linear("classifier.0", 1280)


def shufflenetv1() -> Layers:
    yield from conv("conv1", 3, 24, 1)
    yield from norm("bn1", 24)
    inner = 24
    for layer, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for unit in range(units):
            name, out = f"layer{layer}.{unit}", width - inner if unit == 0 else width
            middle = out // 4
            yield from conv(f"{name}.conv1", inner, middle, 1, groups=1 if inner == 24 else 3)
            yield from norm(f"{name}.bn1", middle)
            yield from conv(f"{name}.conv2", middle, middle, 3, groups=middle)
            yield from norm(f"{name}.bn2", middle)
            yield from conv(f"{name}.conv3", middle, out, 1, groups=3)
            yield from norm(f"{name}.bn3", out)
            inner = width
    yield from linear("linear", inner)


def shufflenetv2() -> Layers:
    yield from conv("conv1", 3, 24, 1)
    yield from norm("bn1", 24)
    inner = 24
    for layer, (width, units) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
        half = width // 2
        left = [(inner, inner, 3), (inner, half, 1)]
        down, later = [*left, (inner, half, 1), (half, half, 3), (half, half, 1)], [(half, half, k) for k in (1, 3, 1)]
        for unit, convolutions in enumerate([down, *[later] * units]):
            for number, (taken, out, kernel) in enumerate(convolutions, 1):
                groups = out if kernel == 3 else 1
                yield from conv(f"layer{layer}.{unit}.conv{number}", taken, out, kernel, groups)
                yield from norm(f"layer{layer}.{unit}.bn{number}", out)
        inner = width
    yield from conv("conv2", inner, 1024, 1)
    yield from norm("bn2", 1024)
    yield from linear("linear", 1024)


# The networks of the twelve pairs of the classic tables.
NETWORKS: dict[str, Callable[[], Layers]] = {
    "wrn_40_2": partial(wrn, 40, 2),
    "wrn_40_1": partial(wrn, 40, 1),
    "wrn_16_2": partial(wrn, 16, 2),
    "resnet110": partial(resnet, 110),
    "resnet56": partial(resnet, 56),
    "resnet32": partial(resnet, 32),
    "resnet20": partial(resnet, 20),
    "resnet32x4": partial(resnet, 32, (32, 64, 128, 256)),
    "resnet8x4": partial(resnet, 8, (32, 64, 128, 256)),
    "resnet50": resnet50,
    "vgg13": partial(vgg, 2),
    "vgg8": partial(vgg, 1),
    "mobilenetv2_stride2": mobilenetv2,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
}


def state_of(name: str, first: int = 0) -> State:
    """Return a state dict of constant tensors, numbered from ``first`` on to tell their positions."""
    counted = enumerate(NETWORKS[name](), first)
    return {
        key: torch.full(shape, number, dtype=torch.float32 if shape else torch.int64)
        for number, (key, shape) in counted
    }


@pytest.fixture(scope="module")
def empty() -> Callable[[str], Any]:
    """Return a network with branches and uninitialised weights, since drawing a hundred million takes seconds."""

    def make(name: str) -> Any:
        with torch.device("meta"):
            network = create_network(name, 100)
        return network.to_empty(device="cpu")

    return make


def assert_loads(network: Any, source: Any, state: State) -> None:
    """Check loading with branches and without."""
    for each in (network, network.without_branches):
        for tensor in network.without_branches.state_dict().values():
            tensor.fill_(-1)
        found = published_state_dict(load_weights(each, source).without_branches)
        assert [key for key in found if key in state] == list(state)
        for key, tensor in state.items():
            assert found[key].shape == tensor.shape and found[key].eq(tensor).all(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_repdistiller_and_mdistiller_files_load(name: str, empty: Callable[[str], Any]) -> None:
    """Load files of a single network: RepDistiller's teachers and students, mdistiller's teachers and student_best."""
    network, state = empty(name), state_of(name)
    assert_loads(network, {"model": state}, state)
    assert list(published_state_dict(network.without_branches)) == list(state)
    learnt = [shape for key, shape in NETWORKS[name]() if key.endswith((".weight", ".bias"))]
    assert sum(weight.numel() for weight in network.without_branches.parameters()) == sum(map(math.prod, learnt))


# Keys of mdistiller's distillers (CRD, ReviewKD and, in part, VID) that belong to neither student nor teacher
BESIDE = ("embed_s.linear.weight", "contrast.params", "contrast.memory_v1", "abfs.0.conv1.0.weight", "regressors.0.0")


@pytest.mark.parametrize("name", ["wrn_16_2", "resnet8x4", "vgg8", "mobilenetv2_stride2", "shufflenetv1"])
def test_mdistiller_checkpoint_loads_its_student(name: str, empty: Callable[[str], Any], tmp_path: Path) -> None:
    """Load files of mdistiller's trainer, which wraps everything in DataParallel, and of a network trained alone."""
    network, state = empty(name), state_of(name)
    alone = {f"module.student.{key}": tensor for key, tensor in state.items()}
    teacher = {f"module.teacher.{key}": tensor for key, tensor in state_of(name, first=5000).items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.05, "params": [0]}]}
    for saved in (alone, {**alone, **teacher, **{f"module.{key}": torch.ones(2) for key in BESIDE}}):
        whole = {"epoch": 240, "model": saved, "optimizer": optimizer, "best_acc": torch.tensor(76.2)}
        torch.save(whole, tmp_path / "best")
        assert_loads(network, tmp_path / "best", state)


def test_repdistiller_last_file_loads_without_norm_counters(tmp_path: Path, empty: Callable[[str], Any]) -> None:
    """Load a file that was written before norms counted their batches."""
    state = {key: tensor for key, tensor in state_of("vgg8").items() if not key.endswith("num_batches_tracked")}
    options = argparse.Namespace(lr_decay_epochs=[150, 180, 210], model="vgg8", batch_size=64)
    torch.save({"opt": options, "model": state, "optimizer": {"state": {}}}, tmp_path / "vgg8_last.pth")
    assert_loads(empty("vgg8"), tmp_path / "vgg8_last.pth", state)


def test_classic_checkpoint_of_another_network_is_refused() -> None:
    saved = {f"student.{key}": tensor for key, tensor in state_of("resnet20").items()}
    saved |= {f"teacher.{key}": tensor for key, tensor in state_of("resnet56").items()}
    with pytest.raises(UsageError, match=r"does not fit CIFARResNet of 100 classes: 60 missing: stages\.0\.3"):
        load_weights(create_network("resnet32", branches=False), {"model": saved})


class Own(nn.Module):
    """Name parts of a custom network like those of published files."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher, self.classifier = nn.Linear(2, 2), nn.Linear(2, 2), classifier

    def forward(self, rows: Tensor) -> Tensor:
        return self.classifier(self.student(rows))


@pytest.mark.parametrize("numbered", [False, True])
def test_custom_network_keeps_names_like_the_classic_ones(numbered: bool) -> None:
    last = nn.Linear(2, 5)
    own = Own(nn.Sequential(last) if numbered else last)
    state = {key: torch.full_like(tensor, place) for place, (key, tensor) in enumerate(own.state_dict().items())}
    torch.testing.assert_close(load_weights(own, state).state_dict(), state)
    other = "classifier." if numbered else "classifier.0."
    renamed = {key.replace("classifier.0." if numbered else "classifier.", other): state[key] + 1 for key in state}
    torch.testing.assert_close(list(load_weights(own, renamed).state_dict().values()), list(renamed.values()))
    with pytest.raises(UsageError, match=r"2 there twice, under other names: classifier\.(0\.)?weight"):
        load_weights(own, {**state, **renamed})


def test_mobilenetv2_stride2_has_a_quarter_of_the_convolution_cost() -> None:
    """Count: convolutions see a quarter of the positions, the linear layer the same 1,280 numbers."""
    adds: dict[str, int] = {}
    for name in ("mobilenetv2", "mobilenetv2_stride2"):
        with torch.device("meta"):
            network: Any = create_network(name, 100, branches=False).eval()
            images = torch.empty(1, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            network(images)
        adds[name] = counter.get_total_flops() // 2
    linear_adds = 1280 * 100
    assert adds["mobilenetv2_stride2"] - linear_adds == (adds["mobilenetv2"] - linear_adds) / 4
    assert adds["mobilenetv2_stride2"] == 6_523_648
    sizes = [tuple(each.shape[1:]) for each in network.forward_features(images)]
    assert sizes == [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)]


def test_mobilenetv2_stride2_branches_follow_the_branch_rule() -> None:
    with torch.device("meta"):
        ours, papers = (create_network(name, 100) for name in ("mobilenetv2_stride2", "mobilenetv2"))
        output = ours.eval()(torch.empty(1, 3, 32, 32))
    shapes = (
        {key: tensor.shape for key, tensor in network.branches.state_dict().items()} for network in (ours, papers)
    )
    assert next(shapes) == next(shapes)
    assert [tuple(joint.shape) for joint in output.joint_logits] == [(1, 400)] * 4
    unlike = published_state_dict(ours).keys() ^ published_state_dict(papers).keys()
    assert unlike == {f"backbone.classifier.{part}" for part in ("weight", "bias", "0.weight", "0.bias")}
