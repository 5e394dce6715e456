"""Test that fast paths change numbers by rounding only, and that nothing of them outlasts the fit."""

import copy
import gc
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
from small import (
    BATCH,
    CLASSES,
    MODULES,
    Losses,
    loader,
    make,
    needs_compile,
    needs_kernel,
    norms,
    trainer,
    with_statistics,
)
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils.data import DataLoader

from hsakd_pl import (
    BaselineModule,
    CIFAR100DataModule,
    DigitsDataModule,
    HSAKDModule,
    StudentModule,
    create_network,
    list_networks,
)
from hsakd_pl.errors import UsageError
from hsakd_pl.fast.compiled import Compiled
from hsakd_pl.fast.folded import ROWS_AT_ONCE, Folded
from hsakd_pl.fast.kernels.library import library
from hsakd_pl.fast.norms import layers as norm_layers
from hsakd_pl.fast.norms.blocks import JOINED
from hsakd_pl.fast.winograd import layers
from hsakd_pl.fast.winograd.ops import conv3x3
from hsakd_pl.networks import NetworkOutput, as_network


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect garbage: large networks are in reference cycles."""
    yield
    gc.collect()


def assert_same(found: NetworkOutput, expected: NetworkOutput, **tolerance: float) -> None:
    assert found.embedding is not None and expected.embedding is not None
    torch.testing.assert_close(tuple(found), tuple(expected), **tolerance)


# One network of each family in CI
FAMILIES = (
    "resnet8",
    "resnet8x4",
    "resnet50",
    "resnet18_imagenet",
    "wrn_16_2",
    "vgg8",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
)


@pytest.mark.parametrize("branches", [True, pytest.param(False, marks=pytest.mark.nightly)])  # a subset of the former
@pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.nightly) for name in list_networks()]
)
def test_folded_network_gives_same_outputs(name: str, branches: bool) -> None:
    network = with_statistics(create_network(name, 7, branches)).double()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    size = 64 if name.endswith("imagenet") else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    folded = Folded(network)
    with torch.no_grad():
        assert_same(folded(images), network.outputs(images), rtol=1e-9, atol=1e-9)
    assert norms(folded.network) < norms(network) * (0.6 if name.startswith("wrn") else 0.01)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("branches", [False, True])
def test_folded_network_splits_batches_to_fit_cache(branches: bool) -> None:
    network = with_statistics(create_network("resnet8", CLASSES, branches=branches)).double()
    folded, images = Folded(network), torch.randn(2 * ROWS_AT_ONCE + 1, 3, 8, 8).double()
    rows: list[int] = []
    folded.network.without_branches.stem.register_forward_pre_hook(lambda layer, args: rows.append(len(args[0])))
    assert_same(folded(images), network.outputs(images), rtol=1e-9, atol=1e-9)
    assert rows == [ROWS_AT_ONCE, ROWS_AT_ONCE, 1]


@needs_kernel
@pytest.mark.usefixtures("two_threads")
def test_folded_network_gives_each_thread_a_part() -> None:
    network = with_statistics(create_network("resnet8", CLASSES)).double()
    images = torch.randn(21, 3, 8, 8).double()
    seen = []
    with Folded(network) as folded:
        folded.network.backbone.stem.register_forward_pre_hook(
            lambda layer, args: seen.append((len(args[0]), torch.get_num_threads(), threading.current_thread()))
        )
        assert_same(folded(images), network(images), rtol=1e-9, atol=1e-9)
        assert sorted(rows for rows, *_ in seen) == [10, 11]
        assert all(inside == 1 and thread is not threading.main_thread() for _, inside, thread in seen)
        meanwhile: list[int] = []
        thread = threading.Thread(target=lambda: meanwhile.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *meanwhile] == [2, 2]
        seen.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            folded(images)
        assert {thread for *_, thread in seen} == {threading.main_thread()}
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.usefixtures("two_threads")
def test_error_in_folded_part_is_raised() -> None:
    with Folded(create_network("resnet8", CLASSES)) as folded, pytest.raises(UsageError, match="at least 4 x 4 pixels"):
        folded(torch.randn(2, 3, 2, 2))
    assert torch.get_num_threads() == 2


def test_custom_network_is_not_folded() -> None:
    layer = nn.Conv2d(3, CLASSES, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return layer(self.norm(self.conv(self.conv(images)))).mean((2, 3))

    images, network = torch.randn(2, 3, 4, 4), as_network(with_statistics(Twice()), CLASSES)
    assert torch.equal(Folded(network)(images).logits, network(images))


def test_folded_weights_are_cast_once() -> None:
    network = with_statistics(create_network("wrn_16_1", CLASSES))
    folded = Folded(network, torch.bfloat16)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = folded(images), network(images)
    assert found.logits.dtype == torch.bfloat16
    torch.testing.assert_close(found.logits.float(), expected.logits.float(), rtol=0.05, atol=0.05)
    dtypes = {type(each): each.weight.dtype for each in folded.network.modules() if hasattr(each, "weight")}
    assert dtypes == {nn.Conv2d: torch.bfloat16, nn.Linear: torch.bfloat16, nn.BatchNorm2d: torch.float32}


def losses_of(module: HSAKDModule, precision: str = "64-true", **data: Any) -> list[float]:
    """Return the losses of 8 steps on the digits, every fourth with a smaller batch."""
    kept = Losses()
    digits = DigitsDataModule(batch_size=16, train_fraction=0.05, **data)  # four batches, the last of fewer images
    run = trainer(max_epochs=2, callbacks=[kept], limit_val_batches=2, precision=precision, num_sanity_val_steps=0)
    run.fit(module, datamodule=digits)
    assert len(kept.values) == 8
    return kept.values


def student(**options: Any) -> StudentModule:
    torch.manual_seed(0)
    teacher = with_statistics(create_network("resnet8", 10))
    return StudentModule(create_network("resnet8", 10), teacher, num_classes=10, lr=1e-4, **options)


@pytest.fixture
def winograd_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each Winograd convolution; small images use all kernels."""
    called: list[int] = []
    monkeypatch.setattr(layers, "conv3x3", lambda *given: called.append(1) or conv3x3(*given))
    monkeypatch.setattr(layers, "MIN_WORK", 0)
    monkeypatch.setattr(norm_layers, "MIN_VALUES", 0)
    return called


# At a learning rate of training any rounding, even in float64, grows tenfold every few steps: hence a small one.
@pytest.mark.parametrize(("precision", "bound"), [("64-true", 1e-9), ("32-true", 1e-4)])
@pytest.mark.parametrize("kind", MODULES)
def test_fast_fit_equals_plain_fit(kind: str, precision: str, bound: float, winograd_calls: list[int]) -> None:
    def module(fast: bool) -> HSAKDModule:
        return student(fast=fast) if kind == "student" else make(kind, num_classes=10, lr=1e-4, fast=fast)

    plain = losses_of(module(fast=False), precision)
    assert not winograd_calls
    assert losses_of(module(fast=True), precision) == pytest.approx(plain, rel=bound)
    assert bool(winograd_calls) == (precision == "32-true" and library() is not None)


@pytest.mark.slow
def test_fast_fit_with_trained_teacher_on_cifar_equals_plain_fit(
    cifar_mini: Path, teacher_file: Path, winograd_calls: list[int]
) -> None:
    def losses(fast: bool) -> list[float]:
        pl.seed_everything(0)
        kept, data = Losses(), CIFAR100DataModule(cifar_mini, batch_size=4)
        module = StudentModule("wrn_16_2", "wrn_40_2", teacher_weights=str(teacher_file), lr=1e-4, fast=fast)
        trainer(limit_train_batches=20, limit_val_batches=0, callbacks=[kept]).fit(module, datamodule=data)
        return kept.values

    assert len(fast := losses(fast=True)) == 20 and winograd_calls
    assert fast == pytest.approx(losses(fast=False), rel=1e-4)


@pytest.mark.usefixtures("two_threads")
def test_deterministic_fit_repeats_bitwise(winograd_calls: list[int]) -> None:
    """Repeat a fit bit by bit, without operations whose summation order depends on the number of threads."""
    found = []
    for _ in range(2):
        kept, module = Losses(), student()
        run = trainer(limit_train_batches=3, limit_val_batches=1, callbacks=[kept, Parts()], deterministic=True)
        try:
            run.fit(module, datamodule=DigitsDataModule(batch_size=32))
        finally:
            torch.use_deterministic_algorithms(False)
        found.append(kept.values)
    assert found[0] == found[1] and not winograd_calls


class Parts(pl.Callback):
    """Record whether the teacher gets a batch as a whole."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
        assert module.frozen[0].stand_in.pool is None and not module.frozen[0].stand_in.parts


def layers_with(attribute: str, network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if attribute in vars(layer)]


@needs_kernel
@pytest.mark.parametrize("kind", ["student", "teacher", "mutual", "baseline"])
def test_only_fit_on_cpu_uses_kernels(kind: str) -> None:
    class Found(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
            inside.append(len(layers_with("_conv_forward", module)))
            inside.append(len(layers_with(JOINED, module)))
            inside.extend(len(layers_with("_conv_forward", frozen.stand_in.network)) for frozen in module.frozen)

    inside: list[int] = []
    module = make(kind, num_classes=10)
    trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[Found()]).fit(module, DigitsDataModule())
    assert len(inside) == (3 if kind == "student" else 2) and all(inside)
    assert not layers_with("_conv_forward", module) and not layers_with(JOINED, module)


class Halt(pl.Callback):
    """End a fit by an exception in a hook."""

    def __init__(self, hook: str, exception: BaseException) -> None:
        def halt(*_: Any, **__: Any) -> None:
            raise exception

        setattr(self, hook, halt)


def snapshot(module: HSAKDModule) -> dict[str, Any]:
    """Return all that a fit might leave behind: attributes of layers, memory formats, hooks, process settings."""
    found: dict[str, Any] = {}
    parts = {"": module, **{f"frozen{k}.": frozen.network for k, frozen in enumerate(module.frozen)}}
    for prefix, part in parts.items():
        for name, layer in part.named_modules():
            public = (key for key in vars(layer) if layer is not module or not key.startswith("_"))  # Lightning's own
            found[f"{prefix}{name}"] = type(layer), sorted(public), layer.forward.__func__
            found |= {f"{prefix}{name}.{key}": tensor.stride() for key, tensor in layer.named_parameters(recurse=False)}
    found |= {f"stand-in {k}": frozen.stand_in for k, frozen in enumerate(module.frozen)}
    found["evaluators"] = module.evaluators
    found["threads"] = torch.get_num_threads(), sorted(thread.name for thread in threading.enumerate())
    found["process"] = torch.backends.cudnn.benchmark, torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    found["globals"] = len(torch.serialization.get_safe_globals())
    return found


ENDS: dict[str, tuple[str, BaseException] | None] = {
    "its end": None,
    "an exception": ("on_train_batch_end", RuntimeError("stop")),
    "an exception in validation": ("on_validation_batch_end", RuntimeError("stop")),
    "an exception at the start": ("on_train_start", RuntimeError("stop")),
    "an exception before it": ("on_fit_start", RuntimeError("stop")),
    "Ctrl-C": ("on_train_batch_end", KeyboardInterrupt()),
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compile)])
@pytest.mark.parametrize("end", ENDS)
def test_fast_changes_are_undone_after_fit(end: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, options, dynamic: function)
    module = student(compile=compiled)
    trainer(limit_train_batches=1, limit_val_batches=1).fit(module, DigitsDataModule())  # Lightning's own attributes
    before, environment = snapshot(module), dict(os.environ)
    how = ENDS[end]
    run = trainer(limit_train_batches=2, limit_val_batches=1, callbacks=[Halt(*how)] if how else [])
    if how is None:
        run.fit(module, DigitsDataModule())
    else:
        with pytest.raises((RuntimeError, SystemExit)):
            run.fit(module, DigitsDataModule())
    assert snapshot(module) == before
    assert dict(os.environ) == environment


@pytest.mark.parametrize("end", ["an exception", "Ctrl-C"])
def test_teacher_changes_after_interrupted_fit_take_effect(end: str) -> None:
    module = make("student", num_classes=4)
    with pytest.raises((RuntimeError, SystemExit)):
        trainer(callbacks=[Halt(*ENDS[end])]).fit(module, loader())
    with torch.no_grad():
        for parameter in module.teacher.parameters():
            parameter.zero_()
    assert module.teacher(BATCH[0]).logits.eq(0).all()
    uniform = kd_to_uniform(module)
    torch.testing.assert_close(module.losses(BATCH)["loss_kd"], uniform)


def kd_to_uniform(module: HSAKDModule) -> Tensor:
    """Return the KD of class logits to a uniform teacher."""
    module.eval()
    logits = module.network(module.network.transforms(BATCH[0])).logits / 3
    return 9 * (-math.log(4) - logits.log_softmax(1).mean(1)).mean()


def test_module_copied_during_fit_has_its_own_teacher() -> None:
    class Copy(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
            module.trainer = None
            copies.append(copy.deepcopy(module))
            module.trainer = trainer

    copies: list[Any] = []
    module = make("student", num_classes=4)
    trainer(limit_train_batches=1, callbacks=[Copy()]).fit(module, loader())
    assert copies[0].teacher.stand_in is None and copies[0].teacher.network is not module.teacher.network
    assert copies[0].frozen[0] is copies[0].teacher


@pytest.mark.slow
def test_bf16_losses_stay_near_float32(cifar_mini: Path) -> None:
    """Compare 32 steps on real images: bf16 differs less from float32 than three seeds of float32 from each other."""

    def curve(seed: int, precision: str) -> Tensor:
        pl.seed_everything(seed)
        kept, data = Losses(), CIFAR100DataModule(cifar_mini, batch_size=16)
        teacher = with_statistics(create_network("resnet8", 100))
        module = StudentModule("resnet8", teacher, lr=0.01)
        options = {"limit_train_batches": 32, "limit_val_batches": 0, "precision": precision}
        trainer(callbacks=[kept], **options).fit(module, datamodule=data)
        return torch.tensor(kept.values).view(4, 8).mean(1)

    seeds = torch.stack([curve(seed, "32-true") for seed in range(3)])
    spread = seeds.max(0).values - seeds.min(0).values
    deviation = (curve(0, "bf16-mixed") - seeds[0]).abs()
    assert (deviation < spread).all(), (deviation, spread)
    assert (seeds[:, -1] < seeds[:, 0]).all()


COMPILE = torch.compile


@needs_compile
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("baseline", "inductor"),
        ("student", "aot_eager"),
        pytest.param("student", "inductor", marks=pytest.mark.nightly),  # compiles C++ for a minute
        *(
            pytest.param(kind, "aot_eager", marks=pytest.mark.nightly)
            for kind in ("teacher", "mutual", "probe", "baseline")
        ),
    ],
)
def test_compiled_losses_equal_eager(kind: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile one graph per batch size; ``aot_eager`` is the compiler without its code generator."""

    def compiler(function: Callable[..., Any], options: dict[str, Any], dynamic: bool) -> Callable[..., Any]:
        return COMPILE(function, backend=backend, dynamic=dynamic)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", compiler)

    def module(**options: Any) -> HSAKDModule:
        return student(**options) if kind == "student" else make(kind, num_classes=10, lr=1e-4, **options)

    eager = losses_of(module())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert losses_of(module(compile=True)) == pytest.approx(eager, rel=1e-9)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1 + (
        2 if kind == "mutual" else 1
    )  # the step, and a validation per network


@needs_compile
@pytest.mark.parametrize(
    ("sizes", "compiled"),
    [
        ([32, 32, 32, 26, 32], [32, 32, 32]),
        ([26, 32, 32, 32, 26], [32, 32]),  # resumed at the last batch of an epoch
        ([26, 32, 26, 32, 26], [32]),
        ([8, 8, 32, 32, 8], [8, 32]),
        ([32], []),
    ],
)
def test_repeated_largest_batch_is_compiled(
    sizes: list[int], compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def compiler(function: Callable[..., Any], options: dict[str, Any], dynamic: bool) -> Callable[..., Any]:
        return lambda batch: seen.append(len(batch[0])) or function(batch)

    monkeypatch.setattr(torch, "compile", compiler)

    def losses(batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[1])

    function = Compiled(losses, {"triton.cudagraphs": False})
    assert [function((torch.zeros(size, 3), torch.zeros(size))) for size in sizes] == sizes
    assert seen == compiled


def test_compile_with_older_torch_names_needed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
    message = (
        "compile: PyTorch 2.9 or newer is needed, but 2.6.0+cu124 is installed; update PyTorch, or leave compile out"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        Compiled(torch.relu, {})


@needs_compile
def test_compile_options_reach_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, options, dynamic: given.append(options) or function)
    run = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer(**run).fit(student(compile={"shape_padding": False}), DigitsDataModule())
    assert given == 2 * [{"triton.cudagraphs": False, "shape_padding": False}]
    assert torch._inductor.list_mode_options("reduce-overhead") == {"triton.cudagraphs": True}
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"compile: settings that .*: Unexpected optimization option faster$"):
        trainer(**run).fit(student(compile={"faster": True}), DigitsDataModule())


def test_validation_during_fit_creates_no_inference_tensors() -> None:
    """Check for inference tensors, which CUDA graphs do not support."""

    class Look(pl.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    modes: list[tuple[bool, bool]] = []
    run = trainer(limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=1, callbacks=[Look()])
    run.fit(student(), DigitsDataModule())
    assert modes == [(False, False), (False, False)]


class Evaluators(pl.Callback):
    """Record what evaluates the networks of a module, and their logits of the first batch."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.layers_by_winograd = 0

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            self.kinds |= {type(evaluator).__name__ for evaluator in pl_module.evaluators} or {"the network"}
            for copy in pl_module.evaluators:
                self.layers_by_winograd += len(layers_with("_winograd_frozen", copy.network))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


def evaluate(command: str, module: HSAKDModule, **options: Any) -> tuple[Evaluators, list[float]]:
    """Run a command of a trainer; return what evaluated the networks, and the metrics or the probabilities."""
    seen = Evaluators()
    run = trainer(limit_train_batches=1, callbacks=[seen, *options.pop("callbacks", [])], **options)
    data = DigitsDataModule(batch_size=64)
    if command == "predict":
        data.setup("test")
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.plain_loader(data.splits["test"])]
        predictions = run.predict(module, DataLoader(batches, batch_size=None))
        return seen, [float(row) for batch in predictions for row in batch["probability"]]
    getattr(run, command)(module, datamodule=data)
    assert not module.evaluators
    metrics = {name: float(value) for name, value in run.callback_metrics.items() if "seconds" not in name}
    return seen, [metrics[name] for name in sorted(metrics)]


@needs_kernel
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_evaluation_in_folded_networks_equals_plain_evaluation(command: str) -> None:
    found = {}
    for fast in (True, False):
        torch.manual_seed(0)
        module = make("mutual" if command == "test" else "teacher", num_classes=10, fast=fast, branch_metrics_every=1)
        with_statistics(module, 0.1)
        seen, found[fast] = evaluate(command, module, limit_test_batches=2, limit_val_batches=2)
        assert seen.kinds == ({"Folded"} if fast else {"the network"})
        assert bool(seen.layers_by_winograd) == fast
    assert found[True] == pytest.approx(found[False], rel=1e-3 if command == "fit" else 1e-5)


def observe(module: HSAKDModule) -> None:
    """Observe a layer, as callbacks that record activations do."""
    module.network.without_branches.stem.register_forward_hook(lambda *_: None)


def use_batch_statistics(module: HSAKDModule) -> None:
    """Let norms use the statistics of each batch."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None


REASONS: dict[str, tuple[Callable[[HSAKDModule], object], dict[str, Any]]] = {
    "an observed layer": (observe, {}),
    "statistics of each batch": (use_batch_statistics, {}),
    "float64": (lambda module: None, {"precision": "64-true"}),
    "half precision": (lambda module: None, {"precision": "bf16-mixed"}),
    "deterministic": (lambda module: None, {"deterministic": True}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_evaluation_is_not_folded_where_that_would_be_noticed(reason: str) -> None:
    prepare, options = REASONS[reason]
    module = make("teacher", num_classes=10)
    prepare(module)
    try:
        seen, _ = evaluate("test", module, limit_test_batches=1, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen.kinds == {"the network"}


def test_evaluation_of_a_custom_network_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen, _ = evaluate("test", BaselineModule(network, num_classes=10), limit_test_batches=1)
    assert seen.kinds == {"the network"}


def test_evaluation_uses_weights_that_a_callback_puts_in_place() -> None:
    class Zeros(pl.Callback):
        """Evaluate weights of zero, as callbacks that average weights evaluate the average."""

        def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            for parameter in module.parameters():
                parameter.data.zero_()

    module = make("baseline", num_classes=10)
    run = trainer(limit_train_batches=1, limit_val_batches=1, callbacks=[Zeros()])
    run.fit(module, DigitsDataModule())
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(math.log(10))


def test_module_copied_during_evaluation_evaluates_its_own_weights() -> None:
    class Copy(pl.Callback):
        def on_test_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
            copies.append(copy.deepcopy(module))

    copies: list[Any] = []
    evaluate("test", make("baseline", num_classes=10), limit_test_batches=1, callbacks=[Copy()])
    with torch.inference_mode():  # in which it was copied
        for parameter in copies[0].parameters():
            parameter.zero_()
        assert copies[0].classify(0, BATCH[0]).eq(0).all()


class ReadsGradients(pl.Callback):
    """Record whether there are gradients of the step before when they are about to be freed."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.found.append(any(parameter.grad is not None for parameter in module.parameters()))


@pytest.mark.parametrize(("accumulated", "expected"), [(1, [False] * 4), (2, [False, True, False, True])])
def test_gradients_are_freed_before_the_forward_pass(accumulated: int, expected: list[bool]) -> None:
    module = make("baseline")
    found: list[bool] = []

    def record(layer: nn.Module, inputs: Any) -> None:
        if layer.training:
            found.append(any(parameter.grad is not None for parameter in module.parameters()))

    module.network.stem.register_forward_pre_hook(record)
    trainer(max_epochs=2, accumulate_grad_batches=accumulated).fit(module, loader())
    assert found == expected


def test_gradients_are_kept_for_a_callback_that_reads_them() -> None:
    reads = ReadsGradients()
    trainer(max_epochs=2, callbacks=[reads]).fit(make("baseline"), loader())
    assert reads.found == [False, True, True, True]
