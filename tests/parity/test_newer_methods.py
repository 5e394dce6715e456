"""Test losses and gradients of the newer methods with views, costs or trained parts against their published code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn

from hsakd_pl.methods import (
    crld_loss,
    linear_cka,
    mlkd_loss,
    mlkd_terms,
    simkd_logits,
    simkd_loss,
    simkd_transfer,
    srrl_loss,
    srrl_transfer,
    wkd_cost_matrix,
    wkd_decay,
    wkd_feature_loss,
    wkd_logit_loss,
)
from hsakd_pl.methods.mlkd import share_up_to_median

from .newer import Case

LOSSES: dict[str, Callable[..., Any]] = {
    "mlkd": mlkd_loss,
    "mlkd_even": mlkd_loss,
    "crld": crld_loss,
    "wkd_logit": wkd_logit_loss,
    "wkd_feature": wkd_feature_loss,
    "wkd_feature_grid": wkd_feature_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_matches_published_code(case: Callable[[str], Case], name: str) -> None:
    recorded = case(name)
    if "cost" in recorded.inputs:
        recorded.inputs["cost"].requires_grad_(False)  # a constant of the fit
    recorded.compare(LOSSES[name](**recorded.inputs, **recorded.options))


@pytest.mark.parametrize("name", ["mlkd", "mlkd_even"])
def test_mlkd_terms_and_shares_match_published_code(case: Callable[[str], Case], name: str) -> None:
    recorded = case(name)
    terms = mlkd_terms(**recorded.inputs, temperature=recorded.options["temperature"])
    recorded.compare_parts(**{term.removeprefix("loss_"): value for term, value in terms.items()})
    probabilities = recorded.inputs["teacher_weak"].softmax(1)
    recorded.compare_parts(
        image_share=share_up_to_median(probabilities.amax(1)), class_share=share_up_to_median(probabilities.sum(0))
    )


def test_crld_parts_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("crld")
    weights = {"ce": "ce_weight", "within": "within_weight", "cross": "cross_weight"}
    none = recorded.options | dict.fromkeys(weights.values(), 0.0)
    recorded.compare_parts(
        **{part: crld_loss(**recorded.inputs, **none | {weight: 1.0}) for part, weight in weights.items()}
    )


def test_wkd_logit_parts_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("wkd_logit")
    target = wkd_logit_loss(**recorded.inputs, **recorded.options | {"weight": 0.0})
    both = wkd_logit_loss(**recorded.inputs, **recorded.options | {"weight": 1.0})
    recorded.compare_parts(target=target, transport=both - target)


@pytest.mark.parametrize("name", ["wkd_feature", "wkd_feature_grid"])
def test_wkd_feature_parts_match_published_code(case: Callable[[str], Case], name: str) -> None:
    recorded = case(name)
    std = wkd_feature_loss(**recorded.inputs, **recorded.options | {"ratio": 0.0})
    both = wkd_feature_loss(**recorded.inputs, **recorded.options | {"ratio": 1.0})
    recorded.compare_parts(std=std, mean=both - std)


def test_wkd_costs_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("wkd_cost")
    features = recorded.inputs["class_features"].detach()
    alignments = torch.stack([torch.stack([linear_cka(one, other) for other in features]) for one in features])
    recorded.compare_parts(cka=alignments, cost=wkd_cost_matrix(features, **recorded.options))


def test_wkd_decay_matches_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("wkd_decay")
    factors = [wkd_decay(epoch, **recorded.options) for epoch in recorded.inputs["epoch"].tolist()]
    recorded.compare_parts(factor=factors)


def filled(transfer: nn.Sequential, recorded: Case) -> nn.Sequential:
    """Replace the parameters of a block, in their order, by the recorded ones."""
    for number, weight in enumerate(transfer.parameters()):
        weight.data = recorded.inputs.pop(f"transfer.{number}").detach().view_as(weight)
    assert not [name for name in recorded.inputs if name.startswith("transfer.")]
    return transfer.to(recorded.dtype).train()


def parameters_of(transfer: nn.Sequential, recorded: Case) -> dict[str, Any]:
    """Return the parameters by recorded names, in the recorded shapes, after the backward pass."""
    parameters = {f"transfer.{number}": weight for number, weight in enumerate(transfer.parameters())}
    return {name: Reshaped(weight, recorded.results[f"grad/{name}"].shape) for name, weight in parameters.items()}


class Reshaped:
    """The gradient of a parameter in another shape, which adds sides of 1."""

    def __init__(self, parameter: nn.Parameter, shape: tuple[int, ...]) -> None:
        self.parameter = parameter
        self.shape = shape

    @property
    def grad(self) -> Any:
        assert self.parameter.grad is not None
        return self.parameter.grad.view(self.shape)


def test_simkd_loss_and_prediction_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("simkd")
    inputs = recorded.inputs
    transfer = filled(
        simkd_transfer(inputs["student_map"].shape[1], inputs["teacher_map"].shape[1], **recorded.options), recorded
    )
    size = inputs["teacher_map"].shape[2]
    logits = simkd_logits(inputs["student_map"], transfer, inputs["weight"], inputs["bias"], size)
    recorded.compare_parts(logits=logits)
    loss = simkd_loss(inputs["student_map"], inputs["teacher_map"], transfer)
    parameters = parameters_of(transfer, recorded)
    recorded.compare(loss, dict.fromkeys([*parameters, "student_map"], 1e-4), **parameters)


def test_srrl_loss_matches_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("srrl")
    inputs = recorded.inputs
    widths = inputs["student_embedding"].shape[1], inputs["teacher_embedding"].shape[1]
    transfer = filled(srrl_transfer(*widths, **recorded.options), recorded)
    recorded.compare(srrl_loss(**inputs, transfer=transfer), **parameters_of(transfer, recorded))
