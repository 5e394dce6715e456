"""Test convolutions by Winograd's algorithm: PyTorch's results and gradients up to rounding, used where faster."""

import copy
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from programs import Started
from small import needs_compile, needs_kernel
from torch import Tensor

from hsakd_pl.fast.kernels import library as build
from hsakd_pl.fast.kernels.library import SOURCES, library
from hsakd_pl.fast.winograd import convert, layers, ops, revert
from hsakd_pl.fast.winograd.ops import conv3x3, conv3x3_weight_gradient, outputs_last
from hsakd_pl.files import compiled


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def layer(inputs: int = 32, outputs: int = 32, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("number", "inputs", "outputs", "height", "width"),
    [
        (1, 16, 32, 4, 4),  # a single tile
        (3, 32, 16, 8, 8),
        (2, 48, 80, 7, 5),  # tiles beyond the image; channels that do not fill a register block
        (5, 16, 16, 1, 3),
        (9, 32, 32, 32, 32),  # several blocks
        (3, 128, 128, 9, 8),  # blocks of the fewest tiles
        (80, 144, 144, 4, 4),  # filters that threads do not keep, an odd number of panels, and several blocks
        (1, 272, 256, 4, 4),  # gradients of the weights are PyTorch's
    ],
)
def test_winograd_results_and_gradients_equal_convolution(
    number: int, inputs: int, outputs: int, height: int, width: int, bias: bool
) -> None:
    images, weight = draw(number, inputs, height, width), draw(outputs, inputs, 3, 3, seed=1)
    given = [images, weight, draw(outputs, seed=2)] if bias else [images, weight]
    exact = [each.double().requires_grad_() for each in given]
    ours = [each.clone().requires_grad_() for each in given]
    expected, found = F.conv2d(*exact, padding=1), conv3x3(*ours, *[None] * (3 - len(ours)))
    gradient = draw(*found.shape, seed=3)
    expected.backward(gradient.double())
    found.backward(gradient)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for one, other in [(found, expected), *((one.grad, other.grad) for one, other in zip(ours, exact, strict=True))]:
        assert one.dtype == torch.float32 and one.shape == other.shape
        close(one, other)


@needs_kernel
def test_winograd_second_derivatives_equal_convolution() -> None:
    """Differentiate twice, as gradient penalties do."""

    def penalty(convolution: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> list[Tensor]:
        images, weight = (each.clone().requires_grad_() for each in given)
        gradients = torch.autograd.grad(convolution(images, weight).tanh().sum(), (images, weight), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        return [images.grad, weight.grad]

    given = draw(2, 16, 6, 6), draw(32, 16, 3, 3, seed=1) / 10
    exact = penalty(lambda *pair: F.conv2d(*pair, padding=1), *(each.double() for each in given))
    for found, expected in zip(penalty(lambda *pair: conv3x3(*pair, None), *given), exact, strict=True):
        close(found, expected)


@needs_kernel
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(16, 32), (32, 16), (16, 16), (272, 256)],  # one panel of outputs, of inputs, and gradients that are PyTorch's
)
def test_winograd_operator_passes_opcheck(inputs: int, outputs: int) -> None:
    images, weight, bias = draw(2, inputs, 5, 6), draw(outputs, inputs, 3, 3), draw(outputs)
    given = [each.requires_grad_() for each in (images, weight, bias)]
    for arguments in (given, (given[0], outputs_last(weight.detach()), None)):
        torch.library.opcheck(conv3x3, arguments)
    torch.library.opcheck(conv3x3_weight_gradient, (images, draw(2, outputs, 5, 6)))


@needs_kernel
def test_winograd_is_deterministic() -> None:
    """Repeat with any number of threads: results are equal, unlike sums over threads."""
    images, weight, gradient = draw(16, 32, 16, 16), draw(48, 32, 3, 3), draw(16, 48, 16, 16)
    found = []
    for number in (1, 2, 2, 2):
        torch.set_num_threads(number)
        found.append((conv3x3(images, weight, None), conv3x3_weight_gradient(images, gradient)))
    torch.set_num_threads(1)
    assert all(torch.equal(found[0][0], result) for result, _ in found)
    assert all(torch.equal(found[1][1], weights) for _, weights in found[1:])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-3)


@needs_kernel
def test_winograd_propagates_non_finite_values() -> None:
    images, weight = draw(1, 16, 8, 8), draw(32, 16, 3, 3)
    images[0, 3, 0, 0] = torch.nan
    found = conv3x3(images, weight, None)
    assert found[:, :, :4, :4].isnan().all() and found[:, :, 4:, 4:].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("size", [(64, 48, 16, 16), (64, 16, 16), (64,)])
def test_winograd_refuses_wrong_shapes(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit weights of \(64, 32, 3, 3\)"):
        conv3x3(draw(*size), draw(64, 32, 3, 3), None)


@needs_kernel
def test_winograd_accepts_unbatched_image() -> None:
    convolution, image = layer(), draw(32, 128, 128)
    expected = convolution(image)
    convert(convolution)
    assert torch.equal(convolution(image), expected)


@needs_kernel
@pytest.mark.parametrize("registers", ["-march=native", "-mno-avx512f"])
def test_winograd_stays_within_array_bounds(registers: str, tmp_path: Path) -> None:
    sources, program = [SOURCES[0], Path(__file__).with_name("winograd_bounds.c")], tmp_path / "bounds"
    options = ["-O1", "-march=native", registers, "-fopenmp", "-fsanitize=address,undefined"]
    command = [*os.environ.get("CC", "cc").split(), *options, "-fno-sanitize=alignment", *sources, "-o", program]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler comes without sanitizers")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


@needs_kernel
def test_winograd_without_memory_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: 1

    monkeypatch.setattr(ops, "library", Full)
    with pytest.raises(MemoryError, match=r"images of \(1, 16, 4, 4\)"):
        conv3x3(draw(1, 16, 4, 4), draw(32, 16, 3, 3), None)


def converted(layer: nn.Module) -> bool:
    return bool({layers.METHOD, layers.FROZEN} & vars(layer).keys())


@needs_kernel
def test_layers_convert_to_winograd_in_place_and_back() -> None:
    network = nn.Sequential(layer(), nn.ReLU(), layer(32, 3), layer(32, 48))
    parameters, keys, seen = [*network.parameters()], [*network.state_dict()], []
    network[0].register_forward_hook(lambda *_: seen.append(1))
    images = draw(64, 32, 32, 32)
    expected, before = network[0](images), [dict(vars(each)) for each in network]
    for _ in range(2):
        convert(network)
        assert [converted(each) for each in network] == [True, False, False, True]
        assert {type(each) for each in network} == {nn.Conv2d, nn.ReLU} and [*network.state_dict()] == keys
        assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
        found = network[0](images)
        assert not torch.equal(found, expected)
        close(found, expected)
    assert len(seen) == 3
    for _ in range(2):
        revert(network)
        assert [dict(vars(each)) for each in network] == before
        assert torch.equal(network[0](images), expected)


@needs_kernel
@pytest.mark.parametrize("frozen", [False, True])
def test_copied_winograd_layer_uses_its_own_weights(frozen: bool) -> None:
    network, images = nn.Sequential(layer()), draw(64, 32, 32, 32)
    convert(network, frozen)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(images), network(images))
    revert(copied)
    assert not converted(copied[0]) and converted(network[0])
    convert(copied)
    with torch.no_grad():
        copied[0].weight.zero_()
    close(copied(images), copied[0].bias.view(1, -1, 1, 1).expand(64, 32, 32, 32))
    assert network(images).std() > 0.1


@needs_compile
@needs_kernel
def test_winograd_layer_compiles_in_one_graph() -> None:
    network, images = nn.Sequential(layer(), nn.ReLU(), layer()), draw(64, 32, 16, 16)
    expected = network(images)
    convert(network)
    torch._dynamo.reset()
    close(torch.compile(network, backend="aot_eager", fullgraph=True)(images), expected)


@needs_kernel
@pytest.mark.parametrize("name", ["_conv_forward", "forward"])
def test_layer_with_replaced_method_is_not_converted(name: str) -> None:
    own = layer()
    own.__dict__[name] = lambda images, *_: images
    before = dict(vars(own))
    convert(own)
    revert(own)
    assert dict(vars(own)) == before


class Own(nn.Conv2d):
    """Provide a custom layer with arbitrary behaviour."""


@needs_kernel
@pytest.mark.parametrize(
    "other",
    [
        layer(stride=2),
        layer(padding=0),
        layer(padding="same"),
        layer(padding=2, dilation=2),
        layer(groups=2),
        layer(padding_mode="reflect"),
        layer(40, 32),
        layer(16, 16),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, (3, 1), padding=(1, 0)),
        nn.ConvTranspose2d(32, 32, 3, padding=1),
        Own(32, 32, 3, padding=1),
        layer(dtype=torch.float64),
        layer(device="meta"),
    ],
)
def test_unsuitable_layers_are_not_converted(other: nn.Module) -> None:
    convert(other)
    assert not converted(other)


@needs_kernel
@pytest.mark.parametrize(
    ("images", "by_winograd"),
    [
        (draw(64, 32, 16, 16), True),
        (draw(64, 32, 7, 7), True),
        (draw(8, 32, 16, 16), False),  # too little work
        (draw(12, 32, 16, 16), True),
        (draw(512, 32, 5, 5), False),  # 64 pixels in tiles for 25
        (draw(512, 32, 2, 2), False),
    ],
)
def test_winograd_is_used_only_where_faster(images: Tensor, by_winograd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(layers, "conv3x3", lambda *given: calls.append(1) or conv3x3(*given))
    convolution = layer(32, 64)
    expected = convolution(images)
    convert(convolution)
    close(convolution(images), expected)
    assert bool(calls) == by_winograd
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(images).dtype == torch.bfloat16
    assert convolution.double()(images.double()).dtype == torch.float64
    assert len(calls) == by_winograd


@needs_kernel
def test_frozen_winograd_weights_are_reordered_once_where_they_are_used() -> None:
    convolution, images = layer().requires_grad_(False), draw(24, 32, 16, 16)
    expected = convolution(images)
    convert(convolution, frozen=True)
    unused = convolution.weight
    close(convolution(images[:1]), expected[:1])  # too little work
    assert convolution.weight is unused
    close(convolution(images), expected)
    used = convolution.weight
    assert used.stride(0) == 1 and torch.equal(used, unused) and not used.requires_grad
    close(convolution(images), expected)
    assert convolution.weight is used


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "hsakd_pl"
    library.cache_clear()


def loaded_anew() -> Any:
    library.cache_clear()
    return library()


@needs_kernel
@pytest.mark.usefixtures("cache")
def test_winograd_library_is_built_once_per_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded_anew() is not None
    (built,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == built.stat().st_mode & 0o777 == 0o700
    before = built.stat().st_mtime_ns
    assert loaded_anew() is not None
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]
    cpuinfo = cache.parent / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : another\nflags : avx2\n")
    monkeypatch.setattr(compiled, "CPUINFO", cpuinfo)
    assert loaded_anew() is not None
    assert len([*cache.iterdir()]) == 2  # another processor, another file


def build_library() -> None:
    assert loaded_anew() is not None


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut to half": lambda whole: whole[: len(whole) // 2],
    "one bit": lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    "no checksum": lambda whole: whole[:-32],  # as the package's earlier versions left it
    "text": lambda whole: b"no library",
    "empty": lambda whole: b"",
    "zeros at the end": lambda whole: whole[:-4096] + bytes(4096),  # blocks that never reached the disk
}


@needs_kernel
@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_cached_library_is_rebuilt(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # built twice, so build quickly
    assert loaded_anew() is not None
    (built,) = cache.iterdir()
    whole = built.read_bytes()
    built.unlink()  # the file that this process has loaded must not change
    built.write_bytes(DAMAGE[damage](whole))
    built.chmod(0o700)
    assert loaded_anew() is not None
    assert built.read_bytes() == whole and [*cache.iterdir()] == [built]


def link(cache: Path, built: str) -> None:
    (cache.parent / "elsewhere").mkdir()
    cache.symlink_to(cache.parent / "elsewhere")


def link_file(cache: Path, built: str) -> None:
    cache.mkdir(mode=0o700)
    (cache.parent / "other.so").write_bytes(b"")
    (cache / built).symlink_to(cache.parent / "other.so")


def dangling_link(cache: Path, built: str) -> None:
    cache.mkdir(mode=0o700)
    (cache / built).symlink_to(cache.parent / "nowhere.so")


def open_to_all(cache: Path, built: str) -> None:
    cache.mkdir()
    cache.chmod(0o777)


def writable_file(cache: Path, built: str) -> None:
    cache.mkdir(mode=0o700)
    (cache / built).write_bytes(b"")
    (cache / built).chmod(0o666)


def file_in_its_place(cache: Path, built: str) -> None:
    cache.write_text("")


def another_user(cache: Path, built: str) -> None:
    cache.mkdir(mode=0o700)
    os.chown(cache, 12345, 12345)


UNSAFE = [link, link_file, dangling_link, open_to_all, writable_file, file_in_its_place, another_user]


@needs_kernel
@pytest.mark.parametrize("place", UNSAFE, ids=lambda place: place.__name__)
def test_cached_library_writable_by_others_is_not_loaded(
    cache: Path, place: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # built twice, so build quickly
    if place is another_user and os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    loaded_anew()
    (built,) = (path.name for path in cache.iterdir())
    (cache / built).unlink()
    cache.rmdir()
    place(cache, built)
    before = {path: path.lstat().st_mtime_ns for path in cache.parent.rglob("*")}
    with caplog.at_level(logging.INFO):
        kernel = loaded_anew()
    assert kernel is not None and not Path(kernel._name).is_relative_to(cache.parent)
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("The C kernels were compiled for this process only") and "hsakd_pl" in said
    assert {path: path.lstat().st_mtime_ns for path in cache.parent.rglob("*")} == before


@needs_kernel
def test_concurrent_processes_build_one_library(cache: Path) -> None:
    running = [Started(build_library) for _ in range(2)]
    assert [process.end().returncode for process in running] == [0, 0]
    assert len([*cache.iterdir()]) == 1


@pytest.mark.usefixtures("cache")
def test_hanging_compiler_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    compiler = tmp_path / "hangs"
    compiler.write_text("#!/bin/sh\nexec sleep 300\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(compiled, "COMPILER_TIMEOUT", 0.1)
    with caplog.at_level(logging.INFO):
        assert loaded_anew() is None
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("Using PyTorch's convolutions") and "hangs" in said and "timed out" in said


@pytest.mark.usefixtures("cache")
def test_missing_compiler_keeps_layers_and_logs_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for compiler in ("no-such-compiler", "false"):
        library.cache_clear()
        caplog.clear()
        monkeypatch.setenv("CC", compiler)
        convolution = layer()
        with caplog.at_level(logging.INFO):
            convert(convolution)
            convert(convolution)
        assert not converted(convolution)
        (said,) = (record.message for record in caplog.records)
        assert said.startswith("Using PyTorch's convolutions") and compiler in said


@pytest.mark.usefixtures("cache")
def test_unsupported_cpu_keeps_layers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    convolution = layer()
    with caplog.at_level(logging.INFO):
        convert(convolution)
    assert not converted(convolution) and not caplog.records
