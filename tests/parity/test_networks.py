"""Test architectures against the manifest, and outputs for filled weights against the recorded ones."""

import hashlib
import json
import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hsakd_pl import list_networks, published_state_dict

from . import fill
from .recordings import GOLDEN, Recorded, deviation, read, recorded_arrays

MANIFEST = read("networks.json")
NETWORKS: dict[str, Any] = MANIFEST["networks"]
OUTPUTS = read("outputs.json")
FLOAT32 = 1e-4  # relative to the largest magnitude
FLOAT64 = 1e-9


def manifest_peers(published: str) -> list[nn.Module]:
    """Return the networks of a manifest entry on the meta device: one, or the two peers of a pair."""
    record = NETWORKS[published]
    return fill.build(published, record["num_classes"], pair=record["kind"] == "pair")


def published_keys(peers: list[nn.Module]) -> dict[str, Tensor]:
    return published_state_dict(peers[0] if len(peers) == 1 else peers)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(counter: FlopCounterMode) -> int:
    return counter.get_total_flops() // 2


def logits_of(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [output.logits, *output.joint_logits]


def logits_deviation(output: Any, recorded: dict[str, Recorded], prefix: str) -> float:
    """Return the largest relative deviation over the class head and every branch, none of which may be missing."""
    names = [name for name in recorded if name.startswith((f"{prefix}logits", f"{prefix}ss_logits"))]
    logits = logits_of(output)
    expected = [f"{prefix}logits", *(f"{prefix}ss_logits_{branch}" for branch in range(len(logits) - 1))]
    assert sorted(names) == sorted(expected)
    return max(deviation(rows, recorded[name]) for rows, name in zip(logits, expected, strict=True))


def test_published_networks_are_registered() -> None:
    names = {fill.our_name(name)[0] for name, record in NETWORKS.items() if record["kind"] != "pair"}
    assert names <= set(list_networks())


def test_fill_rule_matches_manifest_examples() -> None:
    examples = MANIFEST["fill_examples"]
    assert len(examples) > 0
    for example in examples:
        value = fill.fill_array(example["key"], example["shape"])
        assert value.ravel()[:4] == pytest.approx(example["first"], rel=1e-12)
        assert value.sum() == pytest.approx(example["sum"], rel=1e-12)
    example = MANIFEST["meta"]["input_example"]
    value = fill.images(example["seed"], example["shape"][0], example["shape"][-1]).numpy()
    assert list(value.shape) == example["shape"]
    assert value.ravel()[:4] == pytest.approx(example["first"], rel=1e-12)
    example = MANIFEST["meta"]["target_example"]
    assert fill.targets(example["seed"], example["classes"], example["n"]).tolist() == example["values"]


@pytest.mark.parametrize("published", NETWORKS)
def test_architecture_matches_published_code(published: str) -> None:
    """Compare published keys, shapes and their order; parameters, multiply-adds, taps and branches."""
    record, peers = NETWORKS[published], manifest_peers(published)
    keys = [[key, list(value.shape)] for key, value in published_keys(peers).items()]
    assert len(keys) == record["state_dict_length"]
    if (GOLDEN / "manifest.json").exists():  # shows where a key differs
        assert keys == json.loads((GOLDEN / "manifest.json").read_text())["networks"][published]["state_dict"]
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == record["state_dict_sha256"]
    assert sum(parameter_count(peer) for peer in peers) == record["params"]

    images = torch.empty(record["input"], dtype=torch.float64, device="meta")
    counted, shapes = 0, [[1, record["num_classes"]]]
    shapes += [[1, 4 * record["num_classes"]]] * record["num_auxiliary_branches"]
    for peer in peers:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = peer.eval()(images)
        counted += multiply_adds(counter)
        assert [list(logits.shape) for logits in logits_of(output)] == shapes
    assert counted == record["multi_adds"]

    backbone: Any = peers[0] if record["kind"] == "plain" else peers[0].backbone
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        taps = backbone.forward_features(images)
        backbone.head(taps[-1])
    assert [list(tap.shape) for tap in taps] == record["tap_shapes"]
    assert multiply_adds(counter) == record.get("backbone_multi_adds", multiply_adds(counter))
    assert parameter_count(backbone) == record.get("backbone_params", parameter_count(backbone))


@pytest.mark.parametrize("published", NETWORKS)
def test_filled_parameters_match_published_code(published: str) -> None:
    record, peers = NETWORKS[published], manifest_peers(published)
    total, squares = 0.0, 0.0
    for number, peer in enumerate(peers, start=1):
        prefix = f"net{number}." if len(peers) > 1 else ""
        fill.materialize(peer, fill.filled_state(peer, prefix))
        peer_sum, peer_l2 = fill.sum_and_l2(peer.parameters())
        total, squares = total + peer_sum, squares + peer_l2**2
        peer.to("meta")
    l2 = math.sqrt(squares)
    assert l2 == pytest.approx(record["filled_params_l2"], rel=FLOAT64)
    assert deviation(total, record["filled_params_sum"], record["filled_params_l2"]) < FLOAT64


def summaries(record: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a record that are arrays, not numbers."""
    return {name: entry for name, entry in record.items() if isinstance(entry, dict)}


def recorded_totals(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the recorded sums over the running statistics."""
    return {name: record[f"{prefix}{name}"] for name in fill.norm_totals({})}


class Case(NamedTuple):
    """Hold a recording of outputs, its network without weights, the filled values and the image side."""

    record: dict[str, Any]
    arrays: dict[str, Recorded]
    network: nn.Module
    state: dict[str, Tensor]
    size: int


@pytest.fixture(scope="module", params=OUTPUTS)
def case(request: pytest.FixtureRequest) -> Case:
    published: str = request.param
    record = OUTPUTS[published]
    arrays = recorded_arrays(summaries(record), f"outputs/{published}.npz")
    (network,) = fill.build(published, num_classes=arrays["eval_f64_logits"].shape[1])
    return Case(record, arrays, network, fill.filled_state(network), 64 if "imagenet" in published else 32)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("f32", torch.float32, FLOAT32), ("f64", torch.float64, FLOAT64)]
)
def test_eval_outputs_match_published_code(case: Case, name: str, dtype: torch.dtype, tolerance: float) -> None:
    images = fill.images(0, case.record["eval_images"], case.size)
    network = fill.materialize(case.network, case.state, dtype).eval()
    with torch.no_grad():
        output = network(images.to(dtype))
    assert all(logits.dtype == dtype for logits in logits_of(output))
    assert logits_deviation(output, case.arrays, f"eval_{name}_") < tolerance


def test_train_outputs_match_published_code(case: Case) -> None:
    images = fill.images(0, case.record["train_images"], case.size)
    network = fill.materialize(case.network, case.state).train()
    with torch.no_grad():
        output = network(images)
    assert logits_deviation(output, case.arrays, "train_f64_") < FLOAT64
    totals = recorded_totals(case.record, "train_f64_")
    assert fill.norm_deviation(fill.norm_totals(network.state_dict()), totals) < FLOAT64


CALIBRATED = read("calibrated_outputs.json")


@pytest.mark.parametrize("published", sorted({name.partition("/")[0] for name in CALIBRATED}))
def test_calibrated_outputs_match_published_code(published: str) -> None:
    start = f"{published}/"
    record = {key.removeprefix(start): entry for key, entry in CALIBRATED.items() if key.startswith(start)}
    arrays = recorded_arrays(summaries(record), "outputs_calibrated.npz", start)
    images, num_classes = arrays["eval_f64_logits"].shape
    network = fill.calibrate(fill.filled_network(published, num_classes)).eval()
    with torch.no_grad():
        output = network(fill.images(0, images))
    assert logits_deviation(output, arrays, "eval_f64_") < FLOAT64
    assert fill.norm_deviation(fill.norm_totals(network.state_dict()), recorded_totals(record)) < FLOAT64
