"""What makes training fast changes its numbers by rounding only: folded teachers, compiled steps, smaller batches."""

import gc
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
from small import CLASSES, Losses, make, needs_kernel, trainer
from torch import Tensor

from hsakd_pl import CIFAR100DataModule, DigitsDataModule, HSAKDModule, StudentModule, create_network, list_networks
from hsakd_pl.errors import UsageError
from hsakd_pl.modules import base
from hsakd_pl.modules.base import as_output
from hsakd_pl.modules.compiled import Compiled
from hsakd_pl.modules.inference import ROWS_AT_ONCE, InferenceNetwork
from hsakd_pl.winograd import WinogradConv2d, layers
from hsakd_pl.winograd.library import library
from hsakd_pl.winograd.ops import conv3x3


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Large networks lie in reference cycles: free one before the next is built."""
    yield
    gc.collect()


def with_statistics(network: nn.Module) -> nn.Module:
    """Every norm's statistics and weights far from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", list_networks())
def test_folded_network_gives_the_same_outputs(name: str) -> None:
    network = with_statistics(create_network(name, 7)).double()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    ready = InferenceNetwork(network)
    size = 64 if name.endswith("imagenet") else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected, found = network(images), ready(images)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=1e-9)
    assert norms(ready) < norms(network) * (0.6 if name.startswith("wrn") else 0.01)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("branches", [False, True])
def test_images_are_taken_in_parts_that_fit_into_a_cache(branches: bool) -> None:
    network = with_statistics(create_network("resnet8", CLASSES, branches=branches)).double()
    ready, images = InferenceNetwork(network), torch.randn(2 * ROWS_AT_ONCE + 1, 3, 8, 8).double()
    rows: list[int] = []
    ready.network.register_forward_pre_hook(lambda layer, args: rows.append(len(args[0])))
    expected, found = (as_output(each(images)) for each in (network, ready))
    assert rows == [ROWS_AT_ONCE, ROWS_AT_ONCE, 1]
    assert len(found.joint_logits) == (3 if branches else 0)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("two_threads")
def test_each_thread_takes_a_part_of_its_own() -> None:
    network = with_statistics(create_network("resnet8", CLASSES)).double()
    ready, images = InferenceNetwork(network), torch.randn(21, 3, 8, 8).double()
    seen = []
    ready.network.register_forward_pre_hook(
        lambda layer, args: seen.append((len(args[0]), torch.get_num_threads(), threading.current_thread()))
    )
    torch.testing.assert_close(tuple(ready(images)), tuple(network(images)), rtol=1e-9, atol=1e-9)
    assert sorted(rows for rows, *_ in seen) == [10, 11]
    assert all(inside == 1 and thread is not threading.main_thread() for _, inside, thread in seen)
    assert torch.get_num_threads() == 2
    seen.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        ready(images)
    assert {thread for *_, thread in seen} == {threading.main_thread()}


@pytest.mark.usefixtures("two_threads")
def test_a_failing_part_is_an_error_and_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(UsageError, match="at least 4 pixels"):
        InferenceNetwork(create_network("resnet8", CLASSES))(torch.randn(2, 3, 2, 2))
    assert torch.get_num_threads() == 2


def page_faults(mebibytes: int) -> int:
    """How many pages a tensor gets anew after another of its size: the fewest of some, since holes vary in size."""
    resource = import_module("resource")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(mebibytes, 2**18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return min(faults() for _ in range(5))


class PageFaults(pl.Callback):
    """Counts them inside a fit."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.found = page_faults(64)


def page_faults_before_in_and_after_a_fit() -> tuple[int, int, int]:
    before, inside = page_faults(64), PageFaults()
    trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[inside]).fit(student(), DigitsDataModule())
    return before, inside.found, page_faults(256)  # more than any hole that the fit left in the heap


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: its heap is left as it is")
def test_a_fit_keeps_the_memory_that_its_steps_free() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a heap in which nothing has happened yet
        before, inside, after = pool.submit(page_faults_before_in_and_after_a_fit).result()
    assert inside < before / 4
    assert after > 2 * before


def test_another_make_of_network_is_left_as_it_is() -> None:
    layer = nn.Conv2d(3, 3, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = layer, nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.conv(self.conv(images)))

    images, network = torch.randn(2, 3, 4, 4), with_statistics(Twice())
    assert torch.equal(InferenceNetwork(network)(images), network(images))


def test_weights_are_cast_once() -> None:
    network = with_statistics(create_network("wrn_16_1", CLASSES))
    ready = InferenceNetwork(network, torch.bfloat16)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ready(images), network(images)
    assert found.logits.dtype == torch.bfloat16
    torch.testing.assert_close(found.logits.float(), expected.logits.float(), rtol=0.05, atol=0.05)
    dtypes = {type(layer): layer.weight.dtype for layer in ready.modules() if hasattr(layer, "weight")}
    assert dtypes == {nn.Conv2d: torch.bfloat16, nn.Linear: torch.bfloat16, nn.BatchNorm2d: torch.float32}


def losses_of(module: HSAKDModule, precision: str = "64-true", **data: Any) -> list[float]:
    """Of 20 steps on the digits, every tenth with a smaller batch."""
    kept = Losses()
    digits = DigitsDataModule(batch_size=32, train_fraction=0.25, **data)  # 314 images: ten batches, the last of 26
    run = trainer(max_epochs=2, callbacks=[kept], limit_val_batches=2, precision=precision, num_sanity_val_steps=0)
    run.fit(module, datamodule=digits)
    assert len(kept.found) == 20
    return kept.found


def student(**options: Any) -> StudentModule:
    torch.manual_seed(0)
    teacher = with_statistics(create_network("resnet8", 10))
    return StudentModule(create_network("resnet8", 10), teacher, num_classes=10, lr=1e-4, **options)


def fast_and_plain(
    losses: Callable[[], list[float]], by_winograd: bool, patch: pytest.MonkeyPatch
) -> list[list[float]]:
    """Losses with all that a fit makes fast, however small the images, and without any of it."""
    called: list[int] = []
    patch.setattr(layers, "conv3x3", lambda *given: called.append(1) or conv3x3(*given))
    patch.setattr(layers, "LEAST_WORK", 0)
    patch.setattr(layers, "LEAST_TILES", 0)
    fast = losses()
    assert bool(called) == (by_winograd and library() is not None)
    patch.setattr(StudentModule, "setup", lambda self, stage: None)  # no channels_last
    patch.setattr(StudentModule, "on_fit_start", HSAKDModule.on_fit_start)  # no folding
    patch.setattr(base, "set_winograd", lambda network, on: None)
    called.clear()
    plain = losses()
    assert not called
    return [fast, plain]


# At a learning rate of training any rounding, even in float64, grows tenfold every few steps: hence a small one.
@pytest.mark.parametrize(("precision", "bound"), [("64-true", 1e-9), ("32-true", 1e-4)])
def test_fit_with_all_that_is_fast_equals_plain_steps(
    precision: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, plain = fast_and_plain(lambda: losses_of(student(), precision), precision == "32-true", monkeypatch)
    assert fast == pytest.approx(plain, rel=bound)


@pytest.mark.slow
def test_so_it_does_with_a_trained_teacher_on_real_images(
    cifar_mini: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses() -> list[float]:
        pl.seed_everything(0)
        kept, data = Losses(), CIFAR100DataModule(cifar_mini, batch_size=4)
        module = StudentModule("wrn_16_2", "wrn_40_2", teacher_weights=str(teacher_file), lr=1e-4)
        trainer(limit_train_batches=20, limit_val_batches=0, callbacks=[kept]).fit(module, datamodule=data)
        return kept.found

    fast, plain = fast_and_plain(losses, True, monkeypatch)
    assert len(fast) == 20
    assert fast == pytest.approx(plain, rel=1e-4)


@needs_kernel
@pytest.mark.parametrize("kind", ["student", "teacher", "mutual", "baseline"])
def test_a_fit_on_a_cpu_uses_winograds_algorithm_and_only_a_fit(kind: str) -> None:
    def found(module: HSAKDModule) -> list[nn.Module]:
        return [layer for layer in module.modules() if type(layer) is WinogradConv2d]

    class Found(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
            inside.append(found(module))
            frozen.extend(found(getattr(module, "taught_by", [module])[0]))

    inside: list[list[nn.Module]] = []
    frozen: list[nn.Module] = []
    module = make(kind, num_classes=10)
    trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[Found()]).fit(module, DigitsDataModule())
    assert inside and all(inside) and not found(module)
    assert frozen and all((layer.filters is not None) == (kind == "student") for layer in frozen)


@pytest.mark.slow
def test_bf16_learns_as_float32_does(cifar_mini: Path) -> None:
    """Over 32 steps on real images its losses are nearer to float32's than three seeds of float32 are to each other."""

    def curve(seed: int, precision: str) -> Tensor:
        pl.seed_everything(seed)
        kept, data = Losses(), CIFAR100DataModule(cifar_mini, batch_size=16)
        teacher = with_statistics(create_network("resnet8", 100))
        module = StudentModule("resnet8", teacher, lr=0.01)
        options = {"limit_train_batches": 32, "limit_val_batches": 0, "precision": precision}
        trainer(callbacks=[kept], **options).fit(module, datamodule=data)
        return torch.tensor(kept.found).view(4, 8).mean(1)

    seeds = torch.stack([curve(seed, "32-true") for seed in range(3)])
    spread = seeds.max(0).values - seeds.min(0).values
    deviation = (curve(0, "bf16-mixed") - seeds[0]).abs()
    assert (deviation < spread).all(), (deviation, spread)
    assert (seeds[:, -1] < seeds[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("student", "inductor"), *((kind, "aot_eager") for kind in ("teacher", "mutual", "probe", "baseline"))],
)
def test_compiled_equals_eager(kind: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph for one batch size; ``aot_eager`` is the compiler without its code generator."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda function, options, dynamic: compiler(function, backend, dynamic))
    sizes = []
    called = Compiled.__call__
    monkeypatch.setattr(Compiled, "__call__", lambda self, *batch: sizes.append(len(batch[0])) or called(self, *batch))

    def module(**options: Any) -> HSAKDModule:
        return student(**options) if kind == "student" else make(kind, num_classes=10, lr=1e-4, **options)

    eager = losses_of(module())
    assert not sizes
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert losses_of(module(compile=True)) == pytest.approx(eager, rel=1e-9)
    assert {32, 26} <= set(sizes)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1 + (2 if kind == "mutual" else 1)  # the step; a validation a network


def test_options_of_the_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, options, dynamic: given.append(options) or function)
    run = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer(**run).fit(student(compile=True, compile_options={"shape_padding": False}), DigitsDataModule())
    assert given == 2 * [{"triton.cudagraphs": False, "shape_padding": False}]
    assert torch._inductor.list_mode_options("reduce-overhead") == {"triton.cudagraphs": True}
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"compile_options does not suit .*: Unexpected optimization option faster$"):
        trainer(**run).fit(student(compile=True, compile_options={"faster": True}), DigitsDataModule())
    with pytest.raises(UsageError, match=r"compile_options has no effect without compile"):
        student(compile_options={"shape_padding": False})


def compiler(function: Callable[..., Any], backend: str, dynamic: bool) -> Callable[..., Any]:
    return COMPILE(function, backend=backend, dynamic=dynamic)


COMPILE = torch.compile
