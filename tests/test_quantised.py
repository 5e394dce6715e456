"""Test quantisation-aware training: what is trained is what is exported, and what runs."""

import json
import platform
import re
import sys
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import run_on_two
from small import CLASSES, error_of, history, make, needs_onnx, run, trainer, with_statistics
from torch import nn

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    MutualModule,
    QuantizationAware,
    create_network,
    export_student,
)
from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export.aware import restore, stand_in
from hsakd_pl.export.checkpoint import read_trained
from hsakd_pl.export.formats import onnx_runner, trace, write_onnx
from hsakd_pl.export.quantised import QuantisedNetwork, grids, quantise_by
from hsakd_pl.export.quantisers import folded, grids_of, rounded_bias, weight_scales
from hsakd_pl.export.student import Student
from hsakd_pl.files.runtimes import open_graph
from hsakd_pl.records import summary

pytestmark = needs_onnx

DESCRIPTION = Description([str(label) for label in range(CLASSES)], 8, 8, (0.5,) * 3, (0.25,) * 3)
IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# Largest and mean difference of a logit, in steps of the grid of the logits. A value that lies between two numbers of a
# grid may be rounded to either, since PyTorch and onnxruntime add in another order, and each such step of an activation
# moves later ones. OpenVINO joins the operators of the file in its own way, and differs more.
STEPS = {"onnxruntime": (6, 0.8), "openvino": (12, 3)}
NETWORKS = [
    "resnet8x4",
    "wrn_16_2",  # whose norms come before the convolutions
    pytest.param("mobilenetv2", marks=pytest.mark.slow),
    pytest.param("shufflenetv2", marks=pytest.mark.nightly),
]


# onnxruntime's kernels for x86 CPUs without VNNI saturate sums of products (docs/runtimes.md)
CPUINFO = Path("/proc/cpuinfo")
SATURATES = platform.machine() == "x86_64" and CPUINFO.is_file() and "vnni" not in CPUINFO.read_text()
needs_exact_kernels = pytest.mark.skipif(SATURATES, reason="onnxruntime's 8-bit kernels saturate on this CPU")


def quantised_network(name: str) -> tuple[Student, QuantisedNetwork]:
    """Return a student, and its network under quantisation after a step whose batch has determined the ranges."""
    torch.manual_seed(0)
    student = Student(with_statistics(create_network(name, CLASSES, branches=False)), **DESCRIPTION.saved())
    network = student.network.requires_grad_(True)
    quantised = QuantisedNetwork(network, DESCRIPTION)
    network.train()
    loss = F.cross_entropy(quantised(student.normalised(IMAGES)).logits, torch.arange(16) % CLASSES)
    loss.backward()
    quantised.update(0.1, lambda values: values)
    for parameter in network.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        parameter.data -= 0.01 * parameter.grad.clamp(-1, 1)
    network.eval()
    return student, quantised


def int8_file(student: Student, quantised: QuantisedNetwork, folder: Path, factor: float = 1) -> Path:
    """Write the student's int8 file with the trained ranges, times a factor."""
    ranges = {name: (low * factor, high * factor) for name, (low, high) in quantised.ranges.items()}
    path = folder / "model.onnx"
    write_onnx(student, path, trace(student, IMAGES))
    return quantise_by(ranges, path, IMAGES[:2])


def steps(logits: torch.Tensor, expected: torch.Tensor, quantised: QuantisedNetwork) -> torch.Tensor:
    return (logits - expected).abs() / grids(quantised.ranges)["logits"].scale


def test_activations_are_told_by_kind_and_order_if_their_numbers_are_others(tmp_path: Path) -> None:
    """Export with the names that a graph with more outputs can have, as that of timm:lcnet_050 has."""
    student, quantised = quantised_network("resnet8x4")
    path = tmp_path / "model.onnx"
    write_onnx(student, path, trace(student, IMAGES))
    expected = quantise_by(quantised.ranges, path, IMAGES[:2]).read_bytes()
    renumbered = {
        re.sub(r"_(\d+)$", lambda number: f"_{int(number[1]) + 700}", name): values
        for name, values in reversed(quantised.ranges.items())
    }
    assert renumbered.keys() != quantised.ranges.keys()
    assert quantise_by(renumbered, path, IMAGES[:2]).read_bytes() == expected
    with pytest.raises(LookupError, match="16 ranges for 16 activations"):
        quantise_by({name.replace("view", "add"): values for name, values in renumbered.items()}, path, IMAGES[:2])


@torch.no_grad()
@needs_exact_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_trained_exported_and_running_network_agree(name: str, tmp_path: Path) -> None:
    with torch.enable_grad():
        student, quantised = quantised_network(name)
    expected = quantised(student.normalised(IMAGES)).logits
    path = int8_file(student, quantised, tmp_path)
    for runtime, (largest, mean) in STEPS.items():
        if runtime == "onnxruntime" or find_spec(runtime):
            logits = torch.from_numpy(open_graph(path, runtime, 1)(IMAGES.numpy()))
            difference = steps(logits, expected, quantised)
            assert difference.max() <= largest and difference.mean() <= mean, runtime
    other = onnx_runner(int8_file(student, quantised, tmp_path, factor=0.8))
    assert steps(other(IMAGES), expected, quantised).mean() > 1


def test_grids_are_those_of_onnxruntime() -> None:
    utilities = pytest.importorskip("onnxruntime.quantization.quant_utils")
    ranges = [(0.0, 1.0), (-0.3, 2.1), (-5.0, -1.0), (2.0, 3.0), (0.0, 0.0), (-1e-3, 1e5)]
    scales, zero_points = grids_of(*torch.tensor(ranges).unbind(1))
    for (low, high), scale, zero_point in zip(ranges, scales, zero_points, strict=True):
        limits = np.array(low, np.float32), np.array(high, np.float32)
        expected = utilities.compute_scale_zp(*limits, np.array(0, np.uint8), np.array(255, np.uint8))
        assert (int(zero_point), float(scale)) == (int(expected[0]), float(expected[1]))


def test_folded_convolution_equals_convolution_and_norm() -> None:
    convolution = nn.Conv2d(3, 4, 3, bias=False)
    norm = with_statistics(nn.Sequential(nn.BatchNorm2d(4)))[0]
    statistics = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    weight, bias = folded(convolution.weight, None, statistics, norm.eps)
    torch.testing.assert_close(F.conv2d(IMAGES, weight, bias), norm(convolution(IMAGES)))
    (weight.sum() + bias.sum()).backward()
    assert all(parameter.grad is not None for parameter in (convolution.weight, norm.weight, norm.bias))


def test_weights_and_biases_are_whole_multiples_of_their_scales() -> None:
    weight = torch.tensor([[1.0, -2.54], [0.0, 0.0]])
    torch.testing.assert_close(weight_scales(weight), torch.tensor([0.02, 1.0]))
    bias = torch.tensor([0.017, -0.5], requires_grad=True)
    rounded = rounded_bias(bias, torch.tensor([0.01, 0.2]))
    torch.testing.assert_close(rounded.detach(), torch.tensor([0.02, -0.4]))
    rounded.sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [1, 1]


def test_ranges_are_moving_averages_of_the_batches() -> None:
    student, quantised = quantised_network("resnet8")
    name = next(iter(quantised.quantisers))
    before = quantised.ranges[name]
    student.network.train()
    quantised(2 * student.normalised(IMAGES))
    quantised.update(0.1, lambda values: values)
    assert quantised.ranges[name] == pytest.approx([0.9 * value + 0.1 * 2 * value for value in before])


def test_copies_and_the_network_after_the_fit_compute_in_floating_point() -> None:
    student, quantised = quantised_network("resnet8")
    images = student.normalised(IMAGES)
    exact = student.network(images)
    stand_in(quantised)
    rounded = student.network(images)
    assert torch.equal(student.network.outputs(images).logits, rounded)
    assert 1e-6 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(deepcopy(student.network)(images), exact)
    restore(student.network)
    assert torch.equal(student.network(images), exact)


def trained_ranges(devices: int, folder: Path) -> dict[str, Any]:
    """Return the ranges after three steps of 16 images each, and save those of each process."""
    torch.manual_seed(0)
    aware = QuantizationAware(momentum=0.1)
    network = with_statistics(create_network("resnet8", 10, branches=False)).train()
    module = BaselineModule(network, num_classes=10, lr=0.01)
    fit = trainer(None, callbacks=[aware], devices=devices, limit_train_batches=3, limit_val_batches=0)
    fit.fit(module, DigitsDataModule(batch_size=16, num_workers=0))
    torch.save(aware.quantised[0].ranges, folder / f"{fit.global_rank}-of-{devices}.pt")
    return aware.quantised[0].ranges


def main() -> None:
    trained_ranges(2, Path(sys.argv[1]))


@pytest.mark.slow
def test_ranges_of_two_processes_are_those_of_all_images(tmp_path: Path) -> None:
    run_on_two(main, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}-of-2.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    whole = trained_ranges(1, tmp_path)
    assert whole.keys() == first.keys() and len(whole) > 10
    for name, (low, high) in whole.items():  # the processes round by their own half until the first step has ended
        assert first[name] == pytest.approx((low, high), rel=0.05, abs=0.05 * (high - low)), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    module = BaselineModule("resnet8", num_classes=10, lr=0.05)
    trainer(folder, max_epochs=2).fit(module, DigitsDataModule(batch_size=32, num_workers=0))
    return folder / "last.ckpt"


def options(finished: Path, **others: Any) -> dict[str, Any]:
    """Return options of a fit that trains the finished student for int8."""
    aware = {"class_path": "hsakd_pl.QuantizationAware", "init_args": {"momentum": 0.1}}
    model = {"network": "resnet8", "weights": str(finished), "num_classes": 10, "lr": 0.001}
    settings = {"limit_train_batches": 4, "max_epochs": 2, **others}
    return {"model": {"init_args": model}, "trainer": {**settings, "callbacks": [aware, *others.get("callbacks", [])]}}


STUDENT = {"teacher": "resnet8", "teacher_weights": "random"}


@needs_exact_kernels
@pytest.mark.parametrize(
    ("module", "more"), [("StudentModule", STUDENT), ("methods.KDModule", {**STUDENT, "fast": False})]
)
def test_run_for_int8_is_validated_and_exported_as_trained(
    module: str, more: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = options(finished)
    settings["model"]["init_args"] |= more
    folder = run("fit", module=module, **settings)
    data = DigitsDataModule(batch_size=64, num_workers=0)
    export = export_student(folder / "last.ckpt", "exported", formats=["onnx"], int8="static", data=data)
    accuracy = history(folder)[-1]["val/acc"]
    assert export.measurement is not None
    measured = export.measurement.accuracy("model.int8.onnx")
    assert measured == pytest.approx(100 * accuracy, abs=100 * 2.5 / 540)  # of 540 images, which may lie on an edge
    record = json.loads(Path("exported", "export.json").read_text())
    assert record["int8"]["ranges"] == "trained" and "calibrated_on" not in record["int8"]
    assert "that the network was trained with" in Path("exported", "README.md").read_text()
    onnx = pytest.importorskip("onnx")
    graph = onnx.load("exported/model.int8.onnx").graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    for name, grid in grids(read_trained(folder / "last.ckpt").ranges).items():
        assert (constants[f"{name}_scale"], constants[f"{name}_zero_point"]) == (
            np.float32(grid.scale),
            grid.zero_point,
        )


@needs_exact_kernels
def test_each_peer_is_trained_and_exported_for_int8(tmp_path: Path) -> None:
    peers = [create_network(name, 10) for name in ("resnet8", "resnet20")]
    data = DigitsDataModule(batch_size=64, num_workers=0)
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=4, callbacks=[QuantizationAware(momentum=0.1)])
    fit.fit(MutualModule(peers, num_classes=10, lr=0.01), data)
    for peer in (1, 2):
        folder = tmp_path / f"peer{peer}"
        export = export_student(tmp_path / "last.ckpt", folder, ["onnx"], int8="static", data=data, peer=peer)
        assert export.measurement is not None
        accuracy = float(fit.callback_metrics[f"val/peer{peer}_acc"])
        measured = export.measurement.accuracy("model.int8.onnx")
        assert measured == pytest.approx(100 * accuracy, abs=100 * 2.5 / 540)


def test_network_in_eval_mode_is_refused() -> None:
    module = BaselineModule(create_network("resnet8", 10).eval(), num_classes=10)
    with pytest.raises(UsageError, match=r"the network is in eval mode.* call its train\(\)"):
        trainer(None, callbacks=[QuantizationAware()]).fit(module, DigitsDataModule(batch_size=16, num_workers=0))


def test_header_recommends_no_precision_that_int8_refuses(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "bf16_advice", lambda kind: "advice on bf16")
    settings = options(finished, enable_progress_bar=True, fast_dev_run=True)
    run("fit", **settings)
    assert "advice on bf16" not in capsys.readouterr().out
    settings["trainer"]["callbacks"] = []
    run("fit", **settings)
    assert "advice on bf16" in capsys.readouterr().out


def test_run_stopped_inside_an_epoch_resumes_bit_by_bit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = partial(run, module="StudentModule")
    settings = options(finished)
    settings["model"]["init_args"] |= STUDENT
    settings["trainer"] |= {"limit_val_batches": 1, "default_root_dir": "whole"}
    fit("fit", **settings)
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 15, "at": 5}}
    settings["trainer"]["default_root_dir"] = "part"
    stopped = {**settings, "trainer": {**settings["trainer"], "callbacks": [*settings["trainer"]["callbacks"], stop]}}
    with pytest.raises(SystemExit):
        fit("fit", **stopped)
    fit("fit", "--ckpt_path", "last", **settings)
    whole, part = (torch.load(Path(name, "last.ckpt"), weights_only=True) for name in ("whole", "part"))
    assert whole["quantisation"] == part["quantisation"] and whole["quantisation"][0]
    assert all(torch.equal(tensor, part["state_dict"][name]) for name, tensor in whole["state_dict"].items())


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({"weights": None}, {}, "name the checkpoint of its finished run by model.weights"),
        ({}, {"precision": "bf16-mixed"}, "QuantizationAware needs 32-true"),
        ({"compile": True}, {}, "leave one of the two out"),
        ({"weights": "absent.ckpt"}, {}, "weight file absent.ckpt does not exist"),
    ],
)
def test_invalid_run_for_int8_is_one_line(
    model: dict[str, Any],
    more: dict[str, Any],
    message: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = options(finished, **more)
    settings["model"]["init_args"] |= model
    assert message in error_of(capsys, lambda: run("fit", **settings))


def test_run_without_quantisation_is_not_resumed_with_it(finished: Path) -> None:
    module = BaselineModule("resnet8", num_classes=10)
    fit = trainer(max_epochs=3, callbacks=[QuantizationAware()])
    with pytest.raises(UsageError, match="start from its weights"):
        fit.fit(module, DigitsDataModule(num_workers=0), ckpt_path=finished)


class Untraceable(nn.Module):
    """A network whose computation depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.mean((2, 3)))
        return logits if logits.sum() > 0 else -logits


def test_unsupported_networks_and_modules_raise() -> None:
    data = DigitsDataModule(num_workers=0)
    fit = trainer(callbacks=[QuantizationAware()])
    with pytest.raises(UsageError, match="network: Untraceable of 10 classes cannot be trained for int8"):
        fit.fit(BaselineModule(Untraceable(), num_classes=10), data)
    with pytest.raises(UsageError, match="LinearProbeModule trains none"):
        fit.fit(make("probe"), data)
    with pytest.raises(UsageError, match="momentum"):
        QuantizationAware(momentum=0)


def test_ranges_of_other_activations_raise(finished: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(finished, weights_only=True)
    checkpoint["quantisation"] = [{"logits": [0.0, 1.0]}]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="the ranges of 1 activations"):
        export_student(tmp_path / "other.ckpt", tmp_path / "out", formats=["onnx"], int8="static", measure=False)
