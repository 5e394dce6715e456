"""Test losses and gradients of the comparison methods against their authors' code in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods import (
    attention_loss,
    correlation_loss,
    dist_loss,
    dkd_loss,
    hierarchical_context_loss,
    hint_loss,
    pkt_loss,
    rkd_loss,
    similarity_loss,
    sskd_terms,
    standardized_kd_loss,
    vid_loss,
)
from hsakd_pl.methods.crd import ContrastMemory, contrast_loss
from hsakd_pl.methods.fitnet import make_regressor
from hsakd_pl.methods.reviewkd import Review
from hsakd_pl.methods.sskd import contrast, image_by_image, kept_rows
from hsakd_pl.methods.vid import Variational
from hsakd_pl.ops import ROTATIONS, total

from . import inputs
from .recordings import DATA, deviation, read, recorded_arrays

RECORDINGS = sorted(path.name for path in DATA.glob("methods_*.json"))
LOSS, GRADIENT = 1e-9, 1e-7
ROUNDING = 1e-8  # relative to the largest gradient; the gradient of a bias before a norm is rounding noise


class Case:
    """Inputs, hyperparameters and results of one method in one recording."""

    def __init__(self, name: str, method: str) -> None:
        recording = read(name)
        drawn = inputs.method_inputs(recording["seed"], recording["draws"])
        for key, values in recording["stored"].items():
            drawn[key] = torch.tensor(values, dtype=torch.float64)
        record = recording[method]
        self.options: dict[str, Any] = record["options"]
        self.drawn = {key: drawn[source] for key, source in record["inputs"].items()}
        self.inputs = {key[3:]: value.clone() for key, value in self.drawn.items() if key.startswith("in/")}
        summaries = {key: entry for key, entry in record["results"].items() if isinstance(entry, dict)}
        arrays = recorded_arrays(summaries, f"methods/{name.removesuffix('.json')}.npz", f"{method}/")
        self.results: dict[str, Any] = record["results"] | arrays

    def option(self, *names: str) -> dict[str, Any]:
        return {name: self.options[name] for name in names}

    def maps(self, side: str) -> list[Tensor]:
        return [
            self.inputs[f"{side}.{stage}"] for stage in range(sum(key.startswith(f"{side}.") for key in self.inputs))
        ]

    def learn(self) -> None:
        """Require the gradients that were recorded."""
        for key, value in self.inputs.items():
            value.requires_grad_(f"grad/{key}" in self.results)

    def fill(self, module: nn.Module, prefix: str, separator: str = "_") -> dict[str, nn.Parameter]:
        """Load the recorded weights into a module and return its parameters by their recorded names."""
        names = {f"{prefix}{name.replace('.', separator)}": weight for name, weight in module.named_parameters()}
        for name, weight in names.items():
            weight.data.copy_(self.inputs[name])
        return names

    def compare(self, loss: Tensor, weights: dict[str, nn.Parameter] | None = None) -> None:
        assert deviation(loss, self.results["loss"]) < LOSS
        loss.backward()
        recorded = {key[5:]: value for key, value in self.results.items() if key.startswith("grad/")}
        learnt = {**self.inputs, **(weights or {})}
        sizes = {key: gradient.summary["largest"] for key, gradient in recorded.items()}
        least = ROUNDING * max(sizes.values())
        for key, gradient in recorded.items():
            assert deviation(learnt[key].grad, gradient, max(sizes[key], least)) < GRADIENT, key
        assert all(value.grad is None for key, value in learnt.items() if key not in recorded)


@pytest.fixture(params=RECORDINGS)
def case(request: pytest.FixtureRequest) -> Callable[[str], Case]:
    return partial(Case, request.param)


@pytest.mark.parametrize(
    ("method", "function", "options"),
    [
        ("dkd", dkd_loss, ("alpha", "beta", "temperature")),
        ("dist", dist_loss, ("inter_weight", "intra_weight", "temperature")),
        ("logit_standardization", standardized_kd_loss, ("temperature",)),
        ("rkd", rkd_loss, ("distance_weight", "angle_weight")),
        ("pkt", pkt_loss, ()),
    ],
)
def test_logit_and_embedding_losses_match_published_code(
    case, method: str, function: Any, options: tuple[str, ...]
) -> None:
    recorded = case(method)
    recorded.learn()
    recorded.compare(function(*recorded.inputs.values(), **recorded.option(*options)))


def test_attention_loss_matches_published_code(case) -> None:
    recorded = case("at")
    recorded.learn()
    recorded.compare(attention_loss(recorded.maps("student"), recorded.maps("teacher"), **recorded.option("power")))


def test_similarity_loss_matches_published_code(case) -> None:
    recorded = case("sp")
    recorded.learn()
    recorded.compare(similarity_loss(recorded.maps("student"), recorded.maps("teacher")))


def test_correlation_loss_matches_published_code(case) -> None:
    recorded = case("cc")
    recorded.learn()
    embedded = [
        F.linear(*(recorded.inputs[f"{side}{part}"] for part in ("", "_weight", "_bias")))
        for side in ("student", "teacher")
    ]
    recorded.compare(correlation_loss(*embedded))


@pytest.mark.parametrize("size", ["down", "up", "same"])
def test_fitnet_loss_and_regressor_match_published_code(case, size: str) -> None:
    recorded = case(f"fitnet_{size}")
    student, teacher = recorded.inputs["student"], recorded.inputs["teacher"]
    regressor = make_regressor(student, teacher).double()
    weights = recorded.fill(regressor[0], "conv_") | recorded.fill(regressor[1], "bn_")
    recorded.learn()
    recorded.compare(hint_loss(regressor(student), teacher), weights)


def test_vid_loss_matches_published_code(case) -> None:
    recorded = case("vid")
    student, teacher = recorded.inputs["student"], recorded.inputs["teacher"]
    variational = Variational(student.shape[1], teacher.shape[1], recorded.options["init_variance"]).double()
    assert deviation(variational.log_scale[0], recorded.options["init_log_scale"]) < 1e-6  # computed in float32
    weights = recorded.fill(variational, "")
    recorded.learn()
    recorded.compare(vid_loss(*variational(student, teacher)), weights)


def test_reviewkd_loss_and_fusion_match_published_code(case) -> None:
    recorded = case("reviewkd")
    student, teacher = recorded.maps("student"), recorded.maps("teacher")
    channels = [[features.shape[1] for features in maps] for maps in (student, teacher)]
    review = Review(*channels, recorded.options["mid_channels"]).double()
    weights = {}
    for number, stage in enumerate(review):
        weights |= recorded.fill(stage, f"stage{number}__")
    assert set(weights) == {name for name in recorded.inputs if name.startswith("stage")}
    recorded.learn()
    recorded.compare(hierarchical_context_loss(review(student, teacher), teacher), weights)


def test_crd_loss_and_banks_match_published_code(case) -> None:
    """Compare two consecutive calls: losses, gradients, both banks, and the constants fixed by the first call."""
    recorded = case("crd")
    options, start = recorded.options, recorded.inputs
    width, samples = start["embed_s.linear.weight"].shape[0], options["samples"]
    widths = (start["embed_s.linear.weight"].shape[1], start["embed_t.linear.weight"].shape[1])
    banks = ContrastMemory(widths, samples, width, options["temperature"], options["momentum"]).double()
    for side, embed in (("s", banks.embed_student), ("t", banks.embed_teacher)):
        embed.load_state_dict({part: start[f"embed_{side}.linear.{part}"] for part in ("weight", "bias")})
    for name in ("memory_student", "memory_teacher"):
        getattr(banks, name).copy_(start[name])
    for call in ("call1", "call2"):
        banks.zero_grad()
        student, teacher, index = (
            recorded.drawn[f"{call}/{name}"] for name in ("student", "teacher", "contrast_index")
        )
        scores = banks(student.requires_grad_(), teacher, index, gather=torch.clone)
        loss = total(contrast_loss(side, samples) for side in scores)
        loss.backward()
        assert deviation(loss, recorded.results[f"{call}/loss"]) < LOSS
        gradients = student.grad, banks.embed_student.weight.grad, banks.embed_teacher.weight.grad
        for name, gradient in zip(("grad_student", "grad_embed_s", "grad_embed_t"), gradients, strict=True):
            assert deviation(gradient, recorded.results[f"{call}/{name}"]) < GRADIENT, name
        for name in ("memory_student", "memory_teacher", "normalizers"):
            assert deviation(getattr(banks, name), recorded.results[f"{call}/{name}"]) < LOSS, name


def by_rotation(rows: Tensor) -> Tensor:
    """Reorder rows from image by image to rotation by rotation, the library's order."""
    return rows.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


def test_sskd_losses_match_published_code(case) -> None:
    recorded = case("sskd")
    recorded.learn()
    rows = {name: by_rotation(value) for name, value in recorded.inputs.items() if name != "labels"}
    options = recorded.option(
        "kd_temperature", "transformed_temperature", "contrast_temperature", "keep_transformed", "keep_contrast"
    )
    terms = sskd_terms(*rows.values(), recorded.inputs["labels"], ROTATIONS, **options)
    for name, term in zip(("ce", "kd", "transformed_kd", "contrast"), terms.values(), strict=True):
        assert deviation(term, recorded.results[f"part/{name}"]) < LOSS, name
    weighted = zip(recorded.options["weights"], terms.values(), strict=True)
    recorded.compare(total(weight * term for weight, term in weighted))


def test_sskd_keeps_rows_of_published_code(case) -> None:
    recorded = case("sskd")
    logits, projection = (by_rotation(recorded.inputs[f"teacher_{name}"]) for name in ("logits", "projection"))
    labels = recorded.inputs["labels"]
    cosines, originals = contrast(projection)
    ranked = {"transformed": (image_by_image(logits), labels[originals]), "contrast": (cosines, originals)}
    for name, (scores, targets) in ranked.items():
        kept = kept_rows(scores, targets, recorded.options[f"keep_{name}"])
        assert kept.nonzero()[:, 0].tolist() == recorded.results[f"kept_{name}"], name
