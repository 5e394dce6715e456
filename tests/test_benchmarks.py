"""Benchmarks: the plain loop computes what the modules compute, every case can be built, the file has its numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from benchmarks import plain
from benchmarks.__main__ import main
from benchmarks.breakdown import CATEGORIES, OTHER, category, idle_share, summarise
from benchmarks.cases import NAMED, Case, find
from benchmarks.growth import spread_percent
from benchmarks.measurement import Measurement
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from hsakd_pl import HSAKDModule, StudentModule
from hsakd_pl.modules.probe import ProbeNetwork
from hsakd_pl.ops import total

TINY = ["--device", "cpu", "--batch-size", "4", "--steps", "2", "--warmup", "0", "--blocks", "1", "--images", "60"]
PAIR = "student:resnet14-resnet8"


def networks_of(module: HSAKDModule) -> plain.Networks:
    """A module's networks in the order of the plain loop."""
    if isinstance(module, StudentModule):
        return module.teacher, module.network
    if isinstance(module.network, ProbeNetwork):
        return module.network.features, module.network.classifier
    return tuple(module.networks)


@pytest.mark.parametrize("name", [PAIR, "teacher:resnet8", "mutual:resnet8", "probe:resnet8"])
def test_the_plain_loop_computes_our_loss(name: str) -> None:
    case, classes = find(name), 10
    torch.manual_seed(0)
    module = case.module(num_classes=classes)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(classes, (4,))
    networks = plain.build(case, classes)
    for ours, theirs in zip(networks_of(module), networks, strict=True):
        theirs.load_state_dict(ours.state_dict())
    learnt = plain.LOSSES[case.method](networks, images, labels)
    module.train()
    terms = module.losses((images, labels))
    assert learnt.loss.item() == pytest.approx(total(terms.values()).item(), rel=1e-5)
    assert learnt.loss.item() == pytest.approx(module.training_step((images, labels), 0).item(), rel=1e-5)
    trained = [name for network in networks for name, each in network.named_parameters() if each.requires_grad]
    assert len(trained) == len([each for each in module.parameters() if each.requires_grad])


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_every_case_of_the_paper_can_be_built(case: Case) -> None:
    with torch.device("meta"):
        assert isinstance(case.module(num_classes=100), HSAKDModule)
    assert find(case.name) == case


def test_the_cases_of_the_paper_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    listed = capsys.readouterr().out.split()
    assert len(listed) == len(set(listed)) == 8 + 5 + 8 + 1
    assert {"student:wrn_40_2-wrn_16_2", "teacher:wrn_40_2", "mutual:resnet56", "probe:mobilenetv2"} <= set(listed)


def run(folder: Path, *options: str) -> dict[str, Any]:
    """What the command writes."""
    main([*TINY, "--out", str(folder / "results.json"), *options])
    return json.loads((folder / "results.json").read_text())


def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, PAIR)
    assert results["settings"]["batch_size"] == 4 and results["environment"]["versions"]["torch"] == torch.__version__
    found = results["cases"][PAIR]
    for loop in ("plain", "step", "fit"):
        assert len(found[loop]["step_ms"]) == 2 and min(found[loop]["step_ms"]) > 0
        assert found[loop]["images_per_second"] == pytest.approx(4000 / found[loop]["ms_per_step"])
        assert found[loop]["first_step_seconds"] > 0
        assert found[loop]["host_syncs_per_step"] is None  # nothing to sync on a CPU
    plain_ms, fit_ms = found["plain"]["ms_per_step"], found["fit"]["ms_per_step"]
    assert found["fit_times_as_fast"] == pytest.approx(plain_ms / fit_ms)
    assert "main.py fit" in capsys.readouterr().out


def test_a_profile(tmp_path: Path) -> None:
    profiles = run(tmp_path, "--profile", PAIR)["profiles"][PAIR]
    for loop in ("plain", "step", "fit"):
        milliseconds = profiles[loop]["milliseconds"]
        assert set(milliseconds) == {*CATEGORIES, OTHER}
        for name in ("convolution", "normalisation", "loss", "optimizer", "data and rotations"):
            assert milliseconds[name] > 0
        assert profiles[loop]["per_step"] > 100
        assert profiles[loop]["idle_share"] is None


def test_epochs(tmp_path: Path) -> None:
    grown = run(tmp_path, "--epochs", "3", "teacher:resnet8")["growth"]["teacher:resnet8"]
    assert len(grown["epoch_seconds"]) == len(grown["bare_seconds"]) == len(grown["memory_bytes"]) == 3
    assert grown["batches_per_epoch"] == 2 and grown["spread_percent"] == spread_percent(grown["epoch_seconds"][1:])
    over_bare = [fit / bare for fit, bare in zip(grown["epoch_seconds"], grown["bare_seconds"], strict=True)][1:]
    assert grown["spread_over_bare_percent"] == spread_percent(over_bare)
    assert grown["fit_overhead_percent"] == pytest.approx(50 * sum(over_bare) - 100)
    assert grown["memory_bytes"][2] is None or grown["memory_growth_bytes"] == (
        grown["memory_bytes"][2] - grown["memory_bytes"][1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--decode-on-device"]])
def test_what_limits_imagenet(options: list[str], tmp_path: Path, unpack: Callable[[str], Path]) -> None:
    folder = unpack("imagenet-mini.tar.gz") / "imagenet-mini"
    found = run(tmp_path, "--input", str(folder), "--workers", "1", "--batch-size", "1", *options)["input"]
    loader, step = found["loader_images_per_second"], found["step_images_per_second"]
    assert found["decode_on_device"] is bool(options) and min(loader, step) > 0
    assert found["limit"] == ("loader" if loader < step else "step")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["student:resnet8"], "student:<teacher>-<student>"),
        (["baseline:resnet8"], "teacher:<net>"),
        (["teacher:resnet9"], "unknown network 'resnet9'"),
        (["--epochs", "2"], "--epochs 2"),
        (["--steps", "100", PAIR], "lower --steps"),
        (["--blocks", "0"], "--blocks"),
    ],
)
def test_mistakes(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *options)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_options_reach_the_module_and_the_trainer_only_if_given() -> None:
    plainly, changed = Settings("cpu"), Settings("cuda", precision="bf16-mixed", compile=True)
    tuned = Settings("cpu", compile=True, compile_options={"shape_padding": False})
    assert plainly.module_options == {} and plainly.trainer_config == {"accelerator": "cpu", "devices": 1}
    assert changed.module_options == {"compile": True} and changed.autocast
    assert tuned.module_options == {"compile": True, "compile_options": {"shape_padding": False}}
    assert changed.trainer_config == {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}


def test_a_block_times_each_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 10.5, 11.5, 11.75])
    measured = Measurement(Meter(torch.device("cpu")), batch_size=8)
    monkeypatch.setattr(measured.meter, "stamp", lambda: next(ticks))
    assert len(list(measured.block(3))) == 3
    assert measured.step_ms == [500, 1000, 250] and measured.median_ms == 500
    assert measured.summary()["images_per_second"] == 16


@pytest.mark.parametrize(
    ("name", "ranges", "expected"),
    [
        ("sm80_xmma_fprop_implicit_gemm_bf16", (), "convolution"),
        ("triton_poi_fused__native_batch_norm_legit_relu_7", (), "normalisation"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", (), "normalisation"),
        ("multi_tensor_apply_kernel<FusedSgdMathFunctor>", (), "optimizer"),
        ("Memcpy DtoH (Device -> Pageable)", (), "casts and copies"),
        ("aten::_log_softmax", (), "loss"),
        ("aten::add_", (), "activations and sums"),
        ("aten::add_", ("aten::add_", "Optimizer.step#SGD.step"), "optimizer"),
        ("aten::arange", (), OTHER),
    ],
)
def test_categories_by_name(name: str, ranges: tuple[str, ...], expected: str) -> None:
    assert category(name, ranges) == expected


def test_kernels_of_a_gpu_are_summed_and_gaps_counted() -> None:
    launch = FunctionEvent(0, "Optimizer.step#SGD.step", 1, 0, 500)
    spans = [("cudnn_conv", 0, 100), ("cudnn_conv", 50, 200), ("softmax", 300, 400), (launch.name, 0, 400)]
    kernels = [FunctionEvent(1, name, 1, start, end, device_type=DeviceType.CUDA) for name, start, end in spans]
    found = summarise(EventList([launch, *kernels], use_device="cuda"), steps=2, cuda=True)
    assert found["milliseconds"]["convolution"] == pytest.approx(0.125)
    assert found["milliseconds"]["loss"] == pytest.approx(0.05)
    assert sum(found["milliseconds"].values()) == pytest.approx(0.175)
    assert found["per_step"] == 1.5
    assert found["idle_share"] == pytest.approx(0.25)
    assert idle_share([(0, 10)]) == 0
