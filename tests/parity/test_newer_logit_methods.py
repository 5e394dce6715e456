"""Test losses and gradients of the newer methods that compare logits, or logits of regions, against their code."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from hsakd_pl.methods import (
    CurriculumTemperature,
    abkd_loss,
    catkd_loss,
    ctkd_loss,
    ldrld_loss,
    nkd_loss,
    normkd_loss,
    region_logits,
    rld_loss,
    sdd_dkd_loss,
    sdd_loss,
    standardized_abkd_loss,
    ttm_loss,
    wttm_loss,
)

from .newer import Case

LOSSES: dict[str, Callable[..., Any]] = {
    "ttm": ttm_loss,
    "wttm": wttm_loss,
    "rld": rld_loss,
    "rld_two_temperatures": rld_loss,
    "nkd": nkd_loss,
    "nkd_softened": nkd_loss,
    "ldrld": ldrld_loss,
    "abkd": abkd_loss,
    "abkd_euclidean": abkd_loss,
    "abkd_kl": abkd_loss,
    "standardized_abkd": standardized_abkd_loss,
    "normkd": normkd_loss,
    "sdd": sdd_loss,
    "sdd_dkd": sdd_dkd_loss,
    "catkd": catkd_loss,
    "catkd_cross": catkd_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_matches_published_code(case: Callable[[str], Case], name: str) -> None:
    recorded = case(name)
    recorded.compare(LOSSES[name](**recorded.inputs, **recorded.options))


def test_ldrld_parts_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("ldrld")
    part = partial(ldrld_loss, **recorded.inputs)
    recorded.compare_parts(
        local=part(**recorded.options | {"alpha": 1.0, "beta": 0.0}),
        rest=part(**recorded.options | {"alpha": 0.0, "beta": 1.0}),
    )


@pytest.mark.parametrize("epoch", [1, 5, 10, 20])
def test_ctkd_loss_and_temperature_match_published_code(
    case: Callable[[str], Case], precision: torch.dtype, epoch: int
) -> None:
    recorded = case(f"ctkd_epoch{epoch}")
    curriculum = CurriculumTemperature().to(precision)
    curriculum.parameter.data.copy_(recorded.inputs.pop("parameter"))
    temperature = curriculum(epoch)
    recorded.compare_parts(temperature=temperature, reversal=curriculum.reversal(epoch))
    loss = ctkd_loss(**recorded.inputs, temperature=temperature)
    recorded.compare(loss, {"parameter": 1e-3}, parameter=curriculum.parameter)  # a difference of large terms


def test_region_logits_match_published_code(case: Callable[[str], Case]) -> None:
    recorded = case("region_logits")
    cotangent = recorded.inputs.pop("cotangent").detach()
    regions = region_logits(**recorded.inputs, **recorded.options)
    recorded.compare_parts(regions=regions)
    recorded.compare((regions * cotangent).sum())
