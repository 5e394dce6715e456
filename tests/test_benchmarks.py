"""Test the benchmarks: the plain loop equals the modules, every case builds, and the file holds its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import norms

from benchmarks import __main__ as command
from benchmarks import plain
from benchmarks.__main__ import main, parser
from benchmarks.cases import COMPARED, METHOD_COSTS, NAMED, Case, find
from benchmarks.loops import BareLoop, SyntheticDataModule, trainer_config
from benchmarks.measuring import Measurement
from hsakd_pl import HSAKDModule, StudentModule, methods
from hsakd_pl.fast.folded import Folded
from hsakd_pl.modules.probe import ProbeNetwork
from hsakd_pl.ops import total

TINY = ["--device", "cpu", "--batch-size", "4", "--steps", "2", "--warmup", "0", "--blocks", "1", "--images", "60"]
PAIR = "student:resnet14-resnet8"


def networks_of(module: HSAKDModule) -> plain.Networks:
    """Return a module's networks in the order of the plain loop."""
    if isinstance(module, StudentModule):
        return module.teacher.network, module.network
    if isinstance(module.network, ProbeNetwork):
        return module.network.features, module.network.classifier
    return tuple(module.networks)


@pytest.mark.parametrize("name", [PAIR, "teacher:resnet8", "mutual:resnet8", "probe:resnet8"])
def test_plain_loop_computes_module_loss(name: str) -> None:
    case, classes = find(name), 10
    torch.manual_seed(0)
    module = case.module(num_classes=classes)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(classes, (4,))
    networks = plain.build(case, classes)
    for ours, theirs in zip(networks_of(module), networks, strict=True):
        theirs.load_state_dict(ours.state_dict())
    loss, _ = plain.LOSSES[case.method](networks, images, labels)
    module.train()
    terms = module.losses((images, labels))
    assert loss.item() == pytest.approx(total(terms.values()).item(), rel=1e-5)
    assert loss.item() == pytest.approx(module.training_step((images, labels), 0).item(), rel=1e-5)
    trained = [name for network in networks for name, each in network.named_parameters() if each.requires_grad]
    assert len(trained) == len([each for each in module.parameters() if each.requires_grad])


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_every_benchmark_case_builds(case: Case) -> None:
    with torch.device("meta"):
        assert isinstance(case.module(num_classes=100), HSAKDModule)
    assert find(case.name) == case


def test_benchmark_list_shows_each_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    listed = capsys.readouterr().out.split()
    assert len(listed) == len(set(listed)) == 8 + 5 + 8 + 1 + 1 + len(COMPARED)
    assert {"student:wrn_40_2-wrn_16_2", "teacher:wrn_40_2", "mutual:resnet56", "probe:mobilenetv2"} <= set(listed)
    assert {"method-costs:wrn_40_2-wrn_16_2", "crd:wrn_40_2-wrn_16_2", "dml:wrn_16_2"} <= set(listed)
    modules = {name for name in methods.__all__ if name.endswith("Module")} - {"DistilledModule"}
    assert {f"methods.{name}" for name in modules} == set(COMPARED.values()) and next(iter(COMPARED)) == "kd"


def run(folder: Path, *options: str) -> dict[str, Any]:
    """Return the file that the command writes."""
    main([*TINY, "--out", str(folder / "results.json"), *options])
    return json.loads((folder / "results.json").read_text())


def test_benchmark_compares_plain_loop_step_and_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, PAIR)
    assert results["options"] == "batch 4" and results["environment"]["versions"]["torch"] == torch.__version__
    found = results["cases"][PAIR]
    for loop in ("plain", "step", "fit"):
        assert len(found[loop]["step_ms"]) == 2 and min(found[loop]["step_ms"]) > 0
        assert found[loop]["images_per_second"] == pytest.approx(4000 / found[loop]["ms_per_step"])
        assert found[loop]["first_step_seconds"] > 0
        assert found[loop]["host_syncs_per_step"] is None  # nothing to sync on a CPU
    ratio = found["plain"]["ms_per_step"] / found["fit"]["ms_per_step"]
    assert found["fit"]["times_as_fast"] == pytest.approx(ratio)
    assert "main.py fit" in capsys.readouterr().out


def test_added_term_cost_is_measured_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    for _ in range(2):
        found = run(tmp_path, "--added-term", "--store", PAIR)["cases"][PAIR]
    assert set(found) == {"step", "added"}
    (file,) = (tmp_path / "results").iterdir()
    ((case, kept),) = json.loads(file.read_text()).items()
    assert case == f"{PAIR} batch 4, a term"
    assert kept["added"] == {key: value for key, value in found["added"].items() if key != "step_ms"}
    assert {"device", "date", "versions", "commit"} <= set(kept["environment"])


def test_method_costs_are_measured_relative_to_kd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = "crd:resnet14-resnet8"
    results = run(tmp_path, one, "dml:resnet8")["cases"]
    assert [list(results[name]) for name in (one, "dml:resnet8")] == [["kd", "crd"], ["dml"]]
    assert find("method-costs") == METHOD_COSTS and [case.method for case in METHOD_COSTS.compared] == list(COMPARED)
    found, shown = results[one], capsys.readouterr().out
    ratio = found["crd"]["ms_per_step"] / found["kd"]["ms_per_step"]
    (row,) = (line for line in shown.partition(one)[2].splitlines() if " crd " in line)
    assert row.split("│")[-2].strip() == f"{ratio:.2f}" and "times kd" in shown and "times dml" in shown


@pytest.mark.parametrize("case", find("method-costs:resnet14-resnet8").compared, ids=lambda case: case.method)
def test_every_method_folds_its_frozen_teacher(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a folded copy replaces the teacher; stage one of SSKD has its teacher inside the trained network."""
    data, options = SyntheticDataModule(32, 4), parser().parse_args(TINY)
    data.setup("fit")
    assert find(case.name) == case
    loop = BareLoop(case.module(num_classes=100), data, options)
    assert len(loop.module.frozen) == (0 if case.method == "dml" else 1)
    for teacher in loop.module.frozen if case.method != "sskdprojection" else ():
        assert isinstance(teacher.stand_in, Folded) and norms(teacher.stand_in.network) == 0 < norms(teacher.network)
        monkeypatch.setattr(teacher.network, "outputs", None)
    loop.step()


def test_benchmark_profile_prints_both_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--out", str(tmp_path / "results.json"), "--profile", PAIR])
    shown = capsys.readouterr().out
    assert all(f"{PAIR}: {loop}" in shown for loop in ("plain PyTorch", "bare loop")) and "convolution" in shown


def test_bare_loop_has_the_fast_paths_of_fit() -> None:
    """Check that it has everything the callback provides, except a logger."""
    data, options = SyntheticDataModule(16, 4), parser().parse_args(TINY)
    data.setup("fit")
    loop = BareLoop(find(PAIR).module(num_classes=100), data, options)
    loop.step()
    assert loop.module.teacher.stand_in is not None and not loop.module.means


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["student:resnet8"], "student:<teacher>-<student>"),
        (["baseline:resnet8"], "teacher:<net>"),
        (["teacher:resnet9"], "unknown network 'resnet9'"),
        (["--steps", "100", PAIR], "lower --steps"),
        (["--blocks", "0"], "--blocks"),
        (["--added-term", "teacher:resnet8"], "--added-term is measured on a student"),
    ],
)
def test_invalid_benchmark_options_exit_with_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *options)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_benchmark_passes_only_given_options_to_trainer() -> None:
    changed = parser().parse_args(["--device", "cuda", "--precision", "bf16-mixed"])
    assert trainer_config(parser().parse_args(TINY)) == {"accelerator": "cpu", "devices": 1}
    assert trainer_config(changed) == {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}


def test_measurement_block_times_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 10.5, 11.5, 11.75])
    measured = Measurement(torch.device("cpu"), batch_size=8)
    monkeypatch.setattr(measured, "_stamp", lambda: next(ticks))
    assert len(list(measured.block(3))) == 3
    assert measured.step_ms == [500, 1000, 250]
    found = measured.summary()
    assert (found["ms_per_step"], found["images_per_second"]) == (500, 16)
