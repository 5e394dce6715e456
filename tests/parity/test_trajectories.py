"""Test the first steps of every recorded run with the modules' training step and optimizer in float64."""

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl import published_state_dict

from . import fill
from .recipes import build_module, is_distillation, recipe_of
from .recordings import GOLDEN, Recorded, deviation, read

RECORDS = read("trajectories.json")
META: dict[str, Any] = RECORDS["meta"]
RUNS: dict[str, Any] = RECORDS["runs"]
TOLERANCE = 1e-7  # of losses and of the L2 norms of groups
TENSOR_TOLERANCE = 1e-6  # of single tensors and of running statistics
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def networks_of(recipe: str, record: dict[str, Any]) -> list[nn.Module]:
    """Return the filled networks of a run: [trained], [trained, teacher] or the peers; calibrated as recorded."""
    num_classes = record["num_classes"]
    if recipe == "mutual":
        return fill.filled_peers(record["pair"], num_classes)
    if recipe == "student":
        teacher = fill.calibrate(fill.filled_network(record["teacher"], num_classes))
        return [fill.filled_network(record["arch"], num_classes), teacher]
    if recipe == "linear":
        return [fill.calibrate(fill.filled_network(f"{record['arch']}_aux", num_classes=100))]
    network = fill.filled_network(record["arch"], num_classes)
    return [fill.calibrate(network) if record["calibrated"] else network]


def make_run(name: str) -> tuple[Any, list[nn.Module]]:
    """Return the module of a run in training mode, and the networks it trains completely (none for a probe)."""
    recipe, record = recipe_of(name), RUNS[name]
    options = {key: record["optimizer"][key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    if "T" in record:
        options["temperature"] = float(record["T"])
    networks = networks_of(recipe, record)
    if recipe != "linear":
        module = build_module(recipe, networks, **options)
        return module.train(), networks if recipe == "mutual" else networks[:1]
    options |= {"num_classes": record["num_classes"], "milestones": (30, 60, 90)}
    module = build_module(recipe, networks, **options)
    with torch.no_grad():
        for key, value in probe_classifier(module, record).items():
            value.copy_(torch.from_numpy(fill.fill_array(key, value.shape)))
    return module.train(), []


def probe_classifier(module: Any, record: dict[str, Any]) -> dict[str, Tensor]:
    """Return weight and bias of a probe's classifier under their recorded keys."""
    start = record["final"]["net"]["classifier"]["start"]
    return {f"{start}{part}": getattr(module.network.classifier, part) for part in ("weight", "bias")}


def trained_state(module: Any, networks: list[nn.Module], record: dict[str, Any]) -> dict[str, Tensor]:
    """Return weights and buffers of the trained networks under the recorded keys."""
    if networks:
        return published_state_dict(networks[0] if len(networks) == 1 else networks)
    return published_state_dict(module.network.features) | probe_classifier(module, record)


def run_steps(module: Any, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the recorded optimizer steps and compare each loss and its parts."""
    terms: dict[str, Tensor] = {}
    losses = module.losses

    def record_terms(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        terms.update(losses(batch))
        return terms

    monkeypatch.setattr(module, "losses", record_terms)
    optimizer = module.configure_optimizers()["optimizer"]
    for setting, value in record["optimizer"].items():
        assert all(param_group[setting] == value for param_group in optimizer.param_groups)
    assert len(record["losses"]) == META["steps"]
    for recorded in record["losses"]:
        images = fill.images(100 + recorded["step"], META["batch"], META["size"])
        targets = fill.targets(200 + recorded["step"], record["num_classes"], META["batch"])
        optimizer.zero_grad()
        loss = module.training_step((images, targets), recorded["step"])
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float64
        cls = sum(term.item() for key, term in terms.items() if not is_distillation(key))
        div = sum(term.item() for key, term in terms.items() if is_distillation(key))
        assert loss.item() == pytest.approx(recorded["total"], rel=TOLERANCE)
        assert cls == pytest.approx(recorded["cls"], rel=TOLERANCE)
        assert div == pytest.approx(recorded["div"] or 0.0, rel=TOLERANCE)


def keys_by_group(state: dict[str, Tensor], record: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Return the keys of the parameters of each recorded part and group, told by the longest start that fits."""
    starts = {
        (part, name): group["start"] for part, groups in record["final"].items() for name, group in groups.items()
    }
    keys: dict[tuple[str, str], list[str]] = {name: [] for name in starts}
    for key in state:
        if not key.endswith(BUFFERS):
            fitting = [name for name, start in starts.items() if key.startswith(start)]
            keys[max(fitting, key=lambda name: len(starts[name]))].append(key)
    return keys


def check_group(state: dict[str, Tensor], keys: list[str], recorded: dict[str, Any]) -> None:
    """Compare sum and L2 norm of a group of parameters; a sum may deviate by rounding relative to the norm."""
    total, l2 = fill.sum_and_l2(state[key] for key in keys)
    assert l2 == pytest.approx(recorded["l2"], rel=TOLERANCE)
    assert deviation(total, recorded["sum"], recorded["l2"]) < TOLERANCE


def check_tensors(state: dict[str, Tensor], keys: list[str], recorded: dict[str, Any]) -> None:
    """Compare the vectors of all tensors' sums and L2 norms of a group."""
    sums, norms = zip(*(fill.sum_and_l2([state[key]]) for key in keys), strict=True)
    scale = recorded["tensor_l2"]["largest"]
    assert deviation(norms, Recorded(recorded["tensor_l2"]), scale) < TENSOR_TOLERANCE
    assert deviation(sums, Recorded(recorded["tensor_sums"]), scale) < TENSOR_TOLERANCE


def check_each_tensor(state: dict[str, Tensor], tensors: dict[str, list[float]]) -> None:
    """Compare sum and L2 norm of every tensor of a group, as the whole recordings hold them."""
    for key, (recorded_sum, recorded_l2) in tensors.items():
        total, l2 = fill.sum_and_l2([state[key]])
        assert l2 == pytest.approx(recorded_l2, rel=TENSOR_TOLERANCE), key
        assert deviation(total, recorded_sum, recorded_l2) < TENSOR_TOLERANCE, key


@pytest.mark.parametrize("name", RUNS)
def test_training_trajectory_matches_published_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RUNS[name]
    module, networks = make_run(name)
    initial = trained_state(module, networks, record)
    keys = keys_by_group(initial, record)
    assert keys
    for (part, group), names in keys.items():
        check_group(initial, names, record["initial"][part][group])
    teacher = copy.deepcopy(module.teacher.state_dict()) if recipe_of(name) == "student" else {}

    run_steps(module, record, monkeypatch)

    if "parameters_without_gradient" in record:
        parameters = [parameter for network in networks for parameter in network.parameters()]
        without = sum(parameter.grad is None for parameter in parameters)
        assert without == record["parameters_without_gradient"]
    for key, value in teacher.items():
        assert torch.equal(module.teacher.state_dict()[key], value), f"the teacher's {key} moved"

    final = trained_state(module, networks, record)
    for (part, group), names in keys.items():
        recorded = record["final"][part][group]
        assert len(names) == recorded["tensor_count"]
        assert sum(final[key].numel() for key in names) == recorded["element_count"]
        check_group(final, names, recorded)
        check_tensors(final, names, recorded)
        if (GOLDEN / "trajectories.json").exists():
            whole = json.loads((GOLDEN / "trajectories.json").read_text())["runs"][name]["final"][part][group]
            assert sorted(whole["tensors"]) == sorted(names)
            check_each_tensor(final, whole["tensors"])
    assert record["final_bn"]
    for prefix, totals in record["final_bn"].items():
        buffers = {key: value for key, value in final.items() if key.startswith(prefix)}
        assert fill.norm_deviation(fill.norm_totals(buffers), totals) < TENSOR_TOLERANCE
