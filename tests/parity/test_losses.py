"""Test losses, their terms and gradients for recorded logits, computed by functions and modules."""

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.networks import HSAKDNet
from hsakd_pl.ops import ROTATIONS, kd_loss

from . import fill, inputs
from .recipes import build_module, is_distillation, network_count, recipe_of
from .recorded import head_of, recorded_network
from .recordings import deviation, read, recorded_arrays

LOSSES = read("losses.json")
RECORDS: dict[str, Any] = LOSSES["losses"]
TOLERANCE = 1e-9


class Recording:
    """Hold the logits of both networks in the recorded row order, image by image, and the recorded gradients."""

    def __init__(self) -> None:
        self.meta = LOSSES["meta"]
        self.inputs = inputs.loss_inputs(self.meta)
        self.gradients = recorded_arrays(LOSSES["gradients"], self.meta["arrays"])
        self.targets = self.inputs["targets"]
        self.images = fill.images(7, self.meta["B"], 4)

    def names(self, prefix: str) -> list[str]:
        """Return the names of a network's class head and branches; ``t_``: of the teacher or second peer."""
        return [f"{prefix}logits", *(f"{prefix}ss_logits_{branch}" for branch in range(self.meta["branches"]))]

    def logits(self, prefix: str = "") -> list[Tensor]:
        """Return the logits of a network's class head, then of its branches."""
        return [self.inputs[name] for name in self.names(prefix)]

    def by_rotation(self, rows: Tensor) -> Tensor:
        """Reorder rows from image by image to rotation by rotation, the library's order."""
        return rows.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)

    def network(self, prefix: str = "") -> HSAKDNet:
        logits, *joint_logits = self.logits(prefix)
        return recorded_network(self.images, logits, joint_logits)

    def module(self, name: str) -> tuple[Any, list[HSAKDNet]]:
        recipe = recipe_of(name)
        networks = [self.network(prefix) for prefix in ("", "t_")[: network_count(recipe)]]
        options = {"temperature": float(self.meta["T"])} if len(networks) > 1 else {}
        return build_module(recipe, list(networks), **options).train(), networks


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording()


def terms_from_ops(name: str, recording: Recording) -> tuple[list[Tensor], list[Tensor]]:
    """Return classification and distillation terms of a run in the published order, by the library's functions."""
    first, second = ([recording.by_rotation(rows) for rows in recording.logits(prefix)] for prefix in ("", "t_"))
    labels, joint = recording.targets, ROTATIONS.joint_labels(recording.targets)
    temperature = float(recording.meta["T"])

    def class_loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[: len(labels)], labels)

    def divergence(pair: tuple[Tensor, Tensor]) -> Tensor:
        return kd_loss(*pair, temperature)

    recipe, pairs = recipe_of(name), list(zip(first, second, strict=True))
    if recipe == "student":
        return [class_loss(first[0])], [*map(divergence, pairs[1:]), divergence(pairs[0])]
    if recipe == "mutual":
        joint_terms = [F.cross_entropy(logits, joint) for logits in first[1:] + second[1:]]
        both_ways = [divergence(way) for pair in pairs for way in (pair, pair[::-1])]
        return [class_loss(first[0]), class_loss(second[0]), *joint_terms], both_ways
    return [*(F.cross_entropy(logits, joint) for logits in first[1:]), class_loss(first[0])], []


@pytest.mark.parametrize("name", RECORDS)
def test_loss_terms_match_published_code(name: str, recording: Recording) -> None:
    record = RECORDS[name]
    cls_terms, div_terms = terms_from_ops(name, recording)
    assert cls_terms
    for terms, kind in ((cls_terms, "cls"), (div_terms, "div")):
        recorded = record[f"{kind}_terms_in_call_order"]
        assert [term.item() for term in terms] == pytest.approx(recorded, rel=TOLERANCE)


@pytest.mark.parametrize("name", RECORDS)
def test_module_loss_terms_match_published_code(name: str, recording: Recording) -> None:
    record = RECORDS[name]
    module, _ = recording.module(name)
    losses = module.losses((recording.images, recording.targets))
    assert all(loss.shape == () for loss in losses.values())
    cls = sum(loss.item() for term, loss in losses.items() if not is_distillation(term))
    div = sum(loss.item() for term, loss in losses.items() if is_distillation(term))
    assert cls == pytest.approx(record["cls"], rel=TOLERANCE)
    assert div == pytest.approx(record["div"] or 0.0, rel=TOLERANCE)


@pytest.mark.parametrize("name", RECORDS)
def test_training_step_loss_and_gradients_match_published_code(name: str, recording: Recording) -> None:
    """Compare the loss and its gradient by every logit: where gradients stop is part of the method."""
    module, networks = recording.module(name)
    loss = module.training_step((recording.images, recording.targets), 0)
    assert loss.item() == pytest.approx(RECORDS[name]["total"], rel=TOLERANCE)
    loss.backward()
    compared = 0
    for network, prefix in zip(networks, (f"grad_{name}_", f"grad_{name}_t_"), strict=False):
        heads = [head_of(network, branch) for branch in (None, *range(recording.meta["branches"]))]
        if f"{prefix}logits" not in recording.gradients:
            assert all(head.grad is None for head in heads)
            continue
        for head, gradient in zip(heads, recording.names(prefix), strict=True):
            assert head.grad is not None
            assert deviation(head.grad, recording.gradients[gradient]) < TOLERANCE
            compared += 1
    assert compared > 0
