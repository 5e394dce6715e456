"""Test norms that are one operation with addition and ReLU: PyTorch's results and gradients up to rounding."""

import copy
import os
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from small import needs_compile, needs_kernel
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from hsakd_pl import create_network
from hsakd_pl.errors import UsageError
from hsakd_pl.fast.kernels.library import SOURCES
from hsakd_pl.fast.norms import blocks, convert, functions, layers, revert
from hsakd_pl.fast.norms.blocks import JOINED
from hsakd_pl.fast.norms.functions import NormReLU
from hsakd_pl.modules.norms import checked_batch_norms


def draw(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 else values


def make_norm(channels: int = 16, **options: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        norm.weight.copy_(draw(channels, seed=1))
        norm.bias.copy_(draw(channels, seed=2))
        norm.running_var.copy_(draw(channels, seed=3).square() + 0.5)
    return norm


def norm_relu(norm: nn.Module, maps: Tensor, residual: Tensor | None = None) -> Tensor:
    return layers.norm_relu(norm, None, maps, residual)


def plain(norm: nn.Module, maps: Tensor, residual: Tensor | None = None) -> Tensor:
    return (norm(maps) if residual is None else norm(maps) + residual).relu()


def reference(norm: nn.BatchNorm2d, maps: Tensor, residual: Tensor | None) -> tuple[Tensor, nn.BatchNorm2d]:
    """Return the plain outputs and norm in float64."""
    double = copy.deepcopy(norm).double()
    return plain(double, maps, residual), double


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max().clamp(min=0.1)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Enable the kernel for small maps, and return a list of its calls."""
    called: list[str] = []
    original = functions._call
    monkeypatch.setattr(functions, "_call", lambda *arguments: called.append(arguments[0]) or original(*arguments))
    monkeypatch.setattr(layers, "MIN_VALUES", 0)
    monkeypatch.setattr(functions, "MIN_SHARED", 0)
    return called


SHAPES = [
    (2, 16, 5, 7),
    (1, 116, 3, 3),  # channels that do not fill the last vector
    (3, 17, 8, 8),
    (1, 24, 1, 2),  # two values per channel
    (5, 64, 1, 1),
    (3, 2048, 2, 2),
    (9, 32, 32, 32),  # several blocks in each thread
]


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SHAPES)
def test_norm_results_and_gradients_equal_plain_norm(
    size: tuple[int, ...], dtype: torch.dtype, added: bool, training: bool, calls: list[str]
) -> None:
    norm = make_norm(size[1]).train(training)
    given = [draw(*size, seed=4, dtype=dtype)] + ([draw(*size, seed=5, dtype=dtype)] if added else [])
    ours = [each.clone().requires_grad_() for each in given]
    exact = [each.double().requires_grad_() for each in given]
    expected, double = reference(norm, *exact, *[None] * (2 - len(exact)))
    found = norm_relu(norm, *ours)
    assert calls and found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    # where an output is near 0, rounding decides whether there is a gradient
    gradient = draw(*size, seed=6, dtype=dtype) * (expected > 1e-4)
    expected.backward(gradient.double())
    found.backward(gradient)
    rounding = 2e-5 if dtype == torch.float32 else 1e-2
    close(found, expected, rounding)
    for one, other in zip(ours, exact, strict=True):
        assert one.grad.dtype == dtype
        close(one.grad, other.grad, rounding)
    for (key, one), other in zip(norm.named_parameters(), double.parameters(), strict=True):
        assert key
        close(one.grad, other.grad, 2e-5)
    for (key, one), other in zip(norm.named_buffers(), double.buffers(), strict=True):
        assert key
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize(("mean", "deviation"), [(50.0, 0.01), (-1000.0, 1.0), (0.0, 1e-4)])
def test_norm_statistics_are_exact_far_from_zero(mean: float, deviation: float) -> None:
    maps = draw(8, 16, 16, 16) * deviation + mean
    maps[0, :, 0, 0] += 100 * deviation  # an outlier in the place from which a shift might be taken
    norm = make_norm()
    expected, double = reference(norm, maps.double(), None)
    close(norm_relu(norm, maps), expected, 1e-3)
    torch.testing.assert_close(norm.running_var.double(), double.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.running_mean.double(), double.running_mean, rtol=1e-6, atol=1e-9)


@needs_kernel
@pytest.mark.parametrize("momentum", [None, 0.3, 1.0])
def test_norm_updates_running_statistics_as_pytorch(momentum: float | None, calls: list[str]) -> None:
    exact, fused = (make_norm(momentum=momentum) for _ in range(2))
    for step in range(3):
        maps = draw(4, 16, 5, 5, seed=step) + step
        exact(maps)
        norm_relu(fused, maps)
    for one, other in zip(fused.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(calls) == 3


@needs_kernel
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_propagates_non_finite_values(dtype: torch.dtype, training: bool, calls: list[str]) -> None:
    maps = draw(2, 16, 4, 4, dtype=dtype)
    maps[0, 0, 0, 0] = torch.nan
    maps[0, 1, 0, 0] = torch.inf
    maps[0, 2, 0, 0] = -torch.inf
    norm = make_norm().train(training)
    expected, _ = reference(norm, maps.double(), None)
    found = norm_relu(norm, maps)
    assert calls and torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())


@needs_kernel
def test_bfloat16_norm_rounds_as_pytorch() -> None:
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(64, 16, 8, 8)
    values = values.contiguous(memory_format=torch.channels_last)
    third = torch.full((16,), 1 / 3)
    found = NormReLU.apply(values, None, third, torch.zeros(16), torch.zeros(16), torch.ones(16), 0.0, False)
    expected = (values.float() * third[0]).to(torch.bfloat16).relu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_norm_second_derivatives_equal_plain_norm(added: bool, training: bool) -> None:
    """Differentiate twice, as gradient penalties do."""

    def penalty(norm: nn.BatchNorm2d, *given: Tensor) -> list[Tensor]:
        used = [each.clone().requires_grad_() for each in given]
        variables = [*used, norm.weight, norm.bias]
        loss = norm_relu(norm, *used).tanh().sum()  # of a norm in float64 the plain one
        gradients = torch.autograd.grad(loss, variables, create_graph=True)
        penalized = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        return list(torch.autograd.grad(penalized, variables))

    given = [draw(2, 16, 6, 6), draw(2, 16, 6, 6, seed=7)][: 1 + added]
    norm = make_norm().train(training)
    exact = penalty(copy.deepcopy(norm).double(), *(each.double() for each in given))
    for found, expected in zip(penalty(norm, *given), exact, strict=True):
        close(found, expected, 1e-4)


@needs_kernel
def test_norm_is_deterministic_for_a_number_of_threads() -> None:
    maps, norm = draw(16, 32, 32, 32), make_norm(32)
    found = []
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        leaf = maps.clone().requires_grad_()
        outputs = norm_relu(norm, leaf)
        outputs.square().sum().backward()
        found.append((outputs, leaf.grad))
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*found[1:], strict=True))
    close(found[0][0], found[1][0], 1e-5)


@needs_kernel
def test_norm_without_memory_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: 1

    monkeypatch.setattr(functions, "library", Full)
    norm = make_norm()
    with pytest.raises(MemoryError, match=r"maps of \(1, 16, 4, 4\)"):
        norm_relu(norm, draw(1, 16, 4, 4))


OTHER_NORMS = {
    "few channels": make_norm(10),
    "no weights": nn.BatchNorm2d(16, affine=False),
    "no statistics": nn.BatchNorm2d(16, track_running_stats=False),
    "another class": nn.SyncBatchNorm(16).eval(),
    "group norm": nn.GroupNorm(4, 16),
}


@needs_kernel
@pytest.mark.parametrize("kind", OTHER_NORMS)
def test_other_norms_are_left_alone(kind: str, calls: list[str]) -> None:
    norm = OTHER_NORMS[kind]
    sequence = nn.Sequential(norm, nn.ReLU())
    convert(sequence)
    assert JOINED not in vars(sequence)
    maps = draw(2, 10 if kind == "few channels" else 16, 3, 3)
    assert torch.equal(norm_relu(norm, maps), plain(norm, maps)) and not calls


OTHER_MAPS: dict[str, Tensor] = {
    "float64": draw(2, 16, 3, 3).double(),
    "float16": draw(2, 16, 3, 3).half(),
    "not channels_last": draw(2, 16, 3, 3).contiguous(),
    "a slice": draw(2, 32, 3, 3)[:, :16],
    "no images": draw(0, 16, 3, 3),
    "a subclass": nn.Parameter(draw(2, 16, 3, 3)),
}


@needs_kernel
@pytest.mark.parametrize("kind", OTHER_MAPS)
def test_other_maps_take_the_plain_norm(kind: str, calls: list[str]) -> None:
    maps = OTHER_MAPS[kind]
    norm = make_norm().to(torch.float64 if maps.dtype == torch.float64 else torch.float32).eval()
    assert torch.equal(norm_relu(norm, maps), plain(norm, maps)) and not calls


@needs_kernel
def test_small_maps_take_the_plain_norm(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MIN_VALUES", 1000)
    norm = make_norm()
    norm_relu(norm, draw(2, 16, 5, 5))
    assert not calls
    norm_relu(norm, draw(2, 16, 6, 6))
    assert calls


@needs_kernel
def test_other_residual_takes_the_plain_norm(calls: list[str]) -> None:
    norm, maps = make_norm().eval(), draw(2, 16, 3, 3)
    for residual in (draw(1, 16, 1, 1), maps.contiguous(), maps.to(torch.bfloat16)):
        assert torch.equal(norm_relu(norm, maps, residual), plain(norm, maps, residual))
    assert not calls


@needs_kernel
def test_one_value_per_channel_raises_pytorchs_error() -> None:
    norm, maps = make_norm(), draw(1, 16, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm_relu(norm, maps)
    with checked_batch_norms(norm), pytest.raises(UsageError, match="more than one value per channel"):
        norm_relu(norm, maps)


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@needs_kernel
@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_hooks_of_joined_layers_are_called(place: int, register: str, calls: list[str]) -> None:
    inner = nn.Sequential(nn.Conv2d(16, 16, 1), make_norm())
    network = nn.Sequential(make_norm(), nn.ReLU(), inner, nn.ReLU()).eval()
    convert(network)
    seen: list[int] = []
    handle = getattr(network[place], register)(lambda *_: seen.append(1))
    network(draw(2, 16, 3, 3)).sum().backward()
    assert len(seen) == 1 and len(calls) < 4
    handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(2))
    calls.clear()
    network(draw(2, 16, 3, 3))
    everywhere.remove()
    assert seen.count(2) == 7 and not calls


class Block(nn.Module):
    """Hold a norm of 16 channels; subclasses say what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.norm = make_norm()
        self.relu = nn.ReLU()


class Added(Block):
    def forward(self, features: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(features)) + features)


class AddedInPlace(Block):
    def forward(self, features: Tensor) -> Tensor:
        out = self.norm(self.conv(features))
        out += features
        return F.relu(out, inplace=True)


class NormAddedTo(Block):
    """Change its input, whose sum with the norm others may read."""

    def forward(self, features: Tensor) -> Tensor:
        features += self.norm(self.conv(features))
        return F.relu(features)


class ReadTwice(Block):
    def forward(self, features: Tensor) -> Tensor:
        normalized = self.norm(self.conv(features))
        return F.relu(normalized) + normalized.sigmoid()


class SumReadTwice(Block):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        total = self.norm(self.conv(features)) + features
        return F.relu(total), total


class InputChangedBetween(Block):
    def forward(self, features: Tensor) -> Tensor:
        maps = self.conv(features)
        normalized = self.norm(maps)
        maps.mul_(2)
        return F.relu(normalized + features)


class Subtracted(Block):
    def forward(self, features: Tensor) -> Tensor:
        return F.relu(torch.add(self.norm(self.conv(features)), features, alpha=-1))


class ByShape(Block):
    def forward(self, features: Tensor) -> Tensor:
        normalized = self.norm(self.conv(features))
        return F.relu(normalized) if features.shape[0] > 1 else normalized


class ByMode(Block):
    def forward(self, features: Tensor) -> Tensor:
        return F.dropout(F.relu(self.norm(self.conv(features))), 0.9, training=self.training)


class TwiceNormed(Block):
    def forward(self, features: Tensor) -> Tensor:
        return self.relu(self.norm(self.relu(self.norm(features))))


class TwoOutputs(Block):
    def forward(self, features: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        return {"maps": self.norm(self.conv(features)).relu(), "scaled": features * scale}


# Calls of the kernel
BLOCKS = {
    Added: 1,
    AddedInPlace: 1,
    NormAddedTo: 0,
    ReadTwice: 0,
    SumReadTwice: 0,
    InputChangedBetween: 0,
    Subtracted: 0,
    ByShape: 0,
    ByMode: 0,
    TwiceNormed: 2,
    TwoOutputs: 1,
}


@needs_kernel
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
def test_converted_block_gives_same_results(
    kind: type[Block], training: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PACKAGES", (__name__.partition(".")[0],))
    expected_block = kind().train(training)
    found_block = copy.deepcopy(expected_block)
    convert(found_block)
    given = [draw(4, 16, 6, 6) for _ in range(2)]
    outputs = []
    for block, maps in zip((expected_block, found_block), given, strict=True):
        torch.manual_seed(0)
        outputs.append(block(maps))
    expected, found = outputs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(*given) or kind is NormAddedTo
    assert len(calls) == BLOCKS[kind]
    for one, other in zip(found_block.buffers(), expected_block.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@needs_kernel
def test_blocks_of_other_packages_are_not_traced() -> None:
    class Counting(Block):
        called = 0

        def forward(self, features: Tensor) -> Tensor:
            Counting.called += 1
            return F.relu(self.norm(features))

    convert(Counting())
    assert Counting.called == 0


@needs_kernel
def test_tracers_and_transforms_see_the_plain_norm(calls: list[str]) -> None:
    network, maps = nn.Sequential(make_norm(), nn.ReLU()).eval(), draw(2, 16, 3, 3)
    expected = network(maps)
    convert(network)
    assert torch.equal(torch.fx.symbolic_trace(network)(maps), expected)
    assert torch.equal(torch.jit.trace(network, maps)(maps), expected)
    assert torch.equal(torch.export.export(network, (maps,)).module()(maps), expected)
    close(torch.func.vmap(network)(maps[None])[0], expected, 1e-5)
    calls.clear()  # tracing compares with a plain call
    torch.func.grad(lambda given: network(given).sum())(maps)
    assert not calls


@needs_compile
@needs_kernel
def test_converted_network_compiles_in_one_graph() -> None:
    network = create_network("vgg8", 10, branches=False).to(memory_format=torch.channels_last).eval()
    images = draw(2, 3, 16, 16)
    expected = network(images)
    convert(network)
    torch._dynamo.reset()
    close(torch.compile(network, backend="eager", fullgraph=True)(images), expected, 1e-5)


@needs_kernel
def test_blocks_convert_in_place_and_back(calls: list[str]) -> None:
    network = nn.Sequential(make_norm(), nn.ReLU(), nn.Sequential(make_norm(), nn.Sigmoid())).eval()
    before = [dict(vars(layer)) for layer in network.modules()]
    keys = list(network.state_dict())
    for _ in range(2):
        convert(network)
        assert [JOINED in vars(layer) for layer in network.modules()] == [True, False, False, False, False, False]
        assert list(network.state_dict()) == keys
    copied = copy.deepcopy(network)
    for _ in range(2):
        revert(network)
        assert [dict(vars(layer)) for layer in network.modules()] == before
    nn.init.zeros_(copied[0].weight)
    nn.init.ones_(copied[0].bias)  # a copy computes with its own weights
    maps = draw(2, 16, 3, 3)
    assert torch.equal(copied[:2](maps), torch.ones_like(maps)) and not calls
    close(copied(maps), copied[2](torch.ones_like(maps)), 1e-5)
    assert calls


# Norms followed by a ReLU, of all norms of the network without branches
NORMS = {
    "wrn_16_2": (12, 13),
    "resnet8x4": (7, 10),
    "resnet50": (49, 53),
    "vgg8": (5, 5),
    "mobilenetv2": (36, 53),
    "shufflenetv1": (46, 49),
    "shufflenetv2": (36, 56),
}


@needs_kernel
@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_networks_join_norms_with_their_relu(name: str, calls: list[str]) -> None:
    network = create_network(name, 10, branches=False).to(memory_format=torch.channels_last).eval()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    images = draw(2, 3, 16, 16)
    expected = network.outputs(images)
    convert(network)
    found = network.outputs(images)
    assert (len(calls), len(norms)) == NORMS[name]
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("registers", ["-march=native", "-mno-avx512f"])
def test_norms_stay_within_array_bounds(registers: str, tmp_path: Path) -> None:
    sources, program = [SOURCES[1], Path(__file__).with_name("norms_bounds.c")], tmp_path / "bounds"
    options = ["-O1", "-march=native", registers, "-fopenmp", "-fsanitize=address,undefined"]
    command = [*os.environ.get("CC", "cc").split(), *options, "-fno-sanitize=alignment", *sources, "-o", program, "-lm"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler comes without sanitizers")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_norm_equals_its_formula() -> None:
    norm, maps, residual = make_norm(), draw(2, 16, 3, 3), draw(2, 16, 3, 3, seed=1)
    statistics = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
    normalized = F.batch_norm(maps, *statistics, norm.weight, norm.bias, eps=norm.eps)
    close(norm_relu(norm, maps, residual), (normalized + residual).relu(), 1e-5)
    assert torch.autograd.gradcheck(
        lambda given: plain(make_norm().double(), given, residual.double()), maps.double().requires_grad_()
    )


def convolved(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a converted sequence whose norm is between two convolutions."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(16, 32, 1), make_norm(32), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))
    block = block.to(memory_format=torch.channels_last)
    for layer in (block[0], block[3]):
        layer.to(dtype)
    convert(block)
    return block


def gradients(block: nn.Module, maps: Tensor, order: int = 1) -> list[Tensor]:
    """Return the gradients of the maps and weights, or those of a penalty on the gradients of the maps."""
    maps = maps.clone().requires_grad_()
    loss = block(maps).square().mean()
    if order == 2:
        (of_maps,) = torch.autograd.grad(loss, maps, create_graph=True)
        loss = of_maps.square().sum()
    return [*torch.autograd.grad(loss, [maps, *block.parameters()], allow_unused=True)]


@needs_kernel
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_with_outputs_computed_again_are_equal(
    training: bool, dtype: torch.dtype, order: int, calls: list[str]
) -> None:
    block = convolved(dtype).train(training)
    maps = draw(4, 16, 8, 8, dtype=dtype)
    found = gradients(block, maps, order)
    computed = len(calls)
    with saved_tensors_hooks(lambda kept: kept, lambda kept: kept):  # then outputs are kept
        expected = gradients(block, maps, order)
    assert len(calls) - computed < computed
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@needs_kernel
def test_output_of_a_norm_is_not_kept_for_the_convolution() -> None:
    block = convolved()
    inputs: list[weakref.ref[Tensor]] = []
    block[3].register_forward_pre_hook(lambda _, arguments: inputs.append(weakref.ref(arguments[0])))
    loss = block(draw(4, 16, 8, 8)).sum()
    assert inputs[0]() is None
    loss.backward()
    with saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
        loss = block(draw(4, 16, 8, 8)).sum()
    assert inputs[1]() is not None


@needs_kernel
def test_forward_pass_without_gradients_leaves_nothing_behind() -> None:
    block = convolved()
    outputs = weakref.ref(block(draw(4, 16, 8, 8)))
    assert outputs() is None


@needs_kernel
def test_change_in_place_before_the_backward_pass_raises() -> None:
    block = convolved()
    loss = block(draw(4, 16, 8, 8)).sum()
    with torch.no_grad():
        block[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
