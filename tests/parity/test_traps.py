"""Test that docs/reproducing.md proves its traps: what was recorded, and what the other reading of a method gives.

A trap is named by the words that begin its paragraph. The paragraph states two numbers, to four digits: the one
recorded from the published code, and the one that follows from what a paper or the name of an option suggests.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods import (
    abkd_loss,
    catkd_loss,
    dkd_loss,
    nkd_loss,
    rld_loss,
    standardized_kd_loss,
    wkd_cost_matrix,
    wkd_logit_loss,
    wttm_loss,
)
from hsakd_pl.methods.wkd import sinkhorn
from hsakd_pl.ops import kd_loss

from .newer import Case

TEXT = (Path(__file__).resolve().parents[2] / "docs/reproducing.md").read_text()
LEAD = re.compile(r"^\*\*(.+?)\.?\*\*(.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
PARAGRAPHS = dict(LEAD.findall(TEXT))


class Trap(NamedTuple):
    """Hold the case that proves a trap, the recorded result, and the other reading of it."""

    case: str
    recorded: Callable[[dict[str, Any]], Any]
    other: Callable[[dict[str, Tensor], dict[str, Any], dict[str, Any]], Any]


def loss(results: dict[str, Any]) -> Any:
    return results["loss"]


def part(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda results: results[f"part/{name}"]


def logits(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return inputs["student_logits"], inputs["teacher_logits"]


def nkd_with_one_temperature(inputs: dict[str, Tensor], options: dict[str, Any], _: Any) -> Tensor:
    student, teacher = logits(inputs)
    target = inputs["labels"][:, None]
    softened = [(values / options["temperature"]).softmax(1).gather(1, target) for values in (student, teacher)]
    plain = [values.softmax(1).gather(1, target) for values in (student, teacher)]
    label = -(softened[1] * softened[0].log()).mean() + (plain[1] * plain[0].log()).mean()
    return nkd_loss(**inputs, **options) + label


def nkd_with_the_label(inputs: dict[str, Tensor], options: dict[str, Any], _: Any) -> Tensor:
    student, teacher = logits(inputs)
    target = inputs["labels"][:, None]
    label = -(teacher.softmax(1).gather(1, target) * student.log_softmax(1).gather(1, target)).mean()
    temperature = options["temperature"]
    products = (teacher / temperature).softmax(1) * (student / temperature).log_softmax(1)
    others = products.scatter(1, target, 0.0)
    return label - options["gamma"] * temperature**2 * others.sum(1).mean()


def ldrld_of_the_teacher(inputs: dict[str, Tensor], options: dict[str, Any], _: Any) -> Tensor:
    """Let the classes be those of the teacher's largest logits, ranked by the teacher."""
    student, teacher = logits(inputs)
    chosen = teacher.topk(options["top_classes"]).indices
    student, teacher = student.gather(1, chosen), teacher.gather(1, chosen)
    ranks = torch.triu_indices(*(2 * [options["top_classes"]]), 1)
    weights = 2 / (1.5 + ranks[1] - ranks[0]) * torch.exp(-0.05 * (ranks[0] + ranks[1] + 2).double())

    def divergence(rows: Tensor, other: Tensor) -> Tensor:
        rows, other = (values.div(options["temperature"]).log_softmax(-1) for values in (rows, other))
        return F.kl_div(rows, other, reduction="none", log_target=True).sum(-1)

    pairs = divergence(student[:, ranks.T], teacher[:, ranks.T]) @ weights
    return options["temperature"] ** 2 * ((pairs + divergence(student, teacher)) / (ranks.shape[1] + 1)).mean()


def mlkd_with_strong_views(inputs: dict[str, Tensor], options: dict[str, Any], results: dict[str, Any]) -> Tensor:
    changes = [
        kd_loss(inputs["student_strong"], inputs["teacher_strong"], temperature)
        - kd_loss(inputs["student_weak"], inputs["teacher_weak"], temperature)
        for temperature in (2.0, 6.0)
    ]
    return results["part/kd"] + sum(changes)


def mlkd_of_selected_images(inputs: dict[str, Tensor], options: dict[str, Any], results: dict[str, Any]) -> Tensor:
    """Let the mask select the images: their divergences are summed, and divided by the size of the batch."""
    confidence = inputs["teacher_weak"].softmax(1).amax(1)
    selected = confidence <= confidence.quantile(0.5)
    student, teacher = inputs["student_weak"], inputs["teacher_weak"]
    temperatures = (options["temperature"], 3.0, 5.0, 2.0, 6.0)
    share = selected.double().mean()
    change = sum(
        share * (kd_loss(student[selected], teacher[selected], t) - kd_loss(student, teacher, t)) for t in temperatures
    )
    return results["part/kd"] + change


def crld_of_sure_images(inputs: dict[str, Tensor], options: dict[str, Any], results: dict[str, Any]) -> Tensor:
    sure = inputs["teacher_weak"].softmax(1).amax(1) >= options["weak_threshold"]
    return results["part/within"] / sure.double().mean()


def transport(inputs: dict[str, Tensor], options: dict[str, Any], iterations: int, regularization: float) -> Tensor:
    changed = options | {"iterations": iterations, "regularization": regularization}
    return wkd_logit_loss(**inputs, **changed | {"weight": 1.0}) - wkd_logit_loss(**inputs, **changed | {"weight": 0.0})


def column_error(inputs: dict[str, Tensor], options: dict[str, Any]) -> float:
    """Return the largest relative error of a plan's column sums after the recorded number of rounds."""
    rows = torch.arange(len(inputs["labels"]))
    kept = torch.arange(inputs["student_logits"].shape[1]) != inputs["labels"][:, None]
    others = [(values / options["temperature"])[kept].view(len(rows), -1) for values in logits(inputs)]
    student, teacher = (values.softmax(1) for values in others)
    costs = torch.stack([inputs["cost"][row][:, row] for row in kept]).clamp(min=0) + 1e-8
    plan = sinkhorn(student, teacher, costs, options["regularization"], options["iterations"])
    return float((plan.sum(1) / teacher - 1).abs().max())


def reversed_order(inputs: dict[str, Tensor], options: dict[str, Any], _: Any) -> Tensor:
    features = inputs["class_features"].clone()
    features[1::2] = features[1::2].flip(1)
    return wkd_cost_matrix(features, **options).norm()


def norm_of_costs(results: dict[str, Any]) -> Any:
    return results["part/cost"].summary["l2"]


TRAPS = {
    "Only the teacher is softened": Trap(
        "ttm", loss, lambda inputs, options, _: kd_loss(*logits(inputs), 1 / options["gamma"])
    ),
    "Unsure images weigh more": Trap("wttm", loss, lambda inputs, options, _: wttm_loss(*logits(inputs), gamma=1.0)),
    "Two temperatures": Trap(
        "rld_two_temperatures",
        loss,
        lambda inputs, options, _: rld_loss(**inputs, **options | {"confidence_temperature": options["temperature"]}),
    ),
    "The mask is by the label's logit": Trap(
        "rld",
        loss,
        lambda inputs, options, _: dkd_loss(
            **inputs, **{name: value for name, value in options.items() if name != "confidence_temperature"}
        ),
    ),
    "The label's term stays at T = 1": Trap("nkd_softened", loss, nkd_with_one_temperature),
    "A copy is another loss": Trap("nkd", loss, nkd_with_the_label),
    "The student chooses": Trap("ldrld", part("local"), ldrld_of_the_teacher),
    "The sum is a mean": Trap(
        "ldrld",
        part("local"),
        lambda inputs, options, results: (
            results["part/local"] * (options["top_classes"] * (options["top_classes"] - 1) / 2 + 1)
        ),
    ),
    "No T² in the plain form": Trap(
        "abkd", loss, lambda inputs, options, _: abkd_loss(**inputs, **options) * options["temperature"] ** 2
    ),
    "T² in the standardised form": Trap(
        "standardized_abkd", loss, lambda inputs, options, results: results["loss"] / options["temperature"] ** 2
    ),
    "It is logit standardisation but for a weight": Trap(
        "normkd", loss, lambda inputs, options, _: standardized_kd_loss(**inputs, **options)
    ),
    "The temperature begins at 15.62": Trap(
        "ctkd_epoch1", loss, lambda inputs, options, _: kd_loss(*logits(inputs), 4.0)
    ),
    "A sign too many": Trap(
        "ctkd_epoch1", part("reversal"), lambda inputs, options, results: -results["part/reversal"]
    ),
    "Regions that disagree count twice": Trap("sdd", loss, lambda inputs, options, _: plain_regions(inputs, options)),
    "Normalised for some pairs": Trap(
        "catkd_cross", loss, lambda inputs, options, _: catkd_loss(**inputs, **options | {"normalize": False})
    ),
    "The masks select nothing": Trap("mlkd", part("kd"), mlkd_of_selected_images),
    "Two strong terms read the weak view": Trap("mlkd", part("kd"), mlkd_with_strong_views),
    "A batch of odd size has another weight": Trap(
        "mlkd", part("image_share"), lambda *_: Case("methods2_0", "mlkd_even").results["part/image_share"]
    ),
    "Images that are left out still count": Trap("crld", part("within"), crld_of_sure_images),
    "Ten rounds": Trap(
        "wkd_logit",
        part("transport"),
        lambda inputs, options, _: transport(inputs, options, 1000, options["regularization"]),
    ),
    "The defaults of its functions are not used": Trap(
        "wkd_logit", part("transport"), lambda inputs, options, _: transport(inputs, options, 30, 25.0)
    ),
    "Single precision": Trap("wkd_logit", part("loss_float32"), lambda inputs, options, results: results["loss"]),
    "The costs depend on the order of the images": Trap("wkd_cost", norm_of_costs, reversed_order),
    "Two versions": Trap(
        "srrl", loss, lambda inputs, options, results: results["part/embedding"] + 5 * results["part/logits"]
    ),
}


def plain_regions(inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """Return the mean of KD over the regions, each of weight 1."""
    student, teacher = (inputs[name].transpose(1, 2).flatten(0, 1) for name in ("student_regions", "teacher_regions"))
    return kd_loss(student, teacher, options["temperature"])


@pytest.mark.parametrize("lead", TRAPS)
def test_trap_states_what_is_recorded_and_what_its_other_reading_gives(lead: str) -> None:
    trap = TRAPS[lead]
    case = Case("methods2_0", trap.case)
    inputs = {name: value.detach() for name, value in case.inputs.items()}
    recorded = float(trap.recorded(case.results))
    other = float(trap.other(inputs, case.options, case.results))
    digits = next(digits for digits in (4, 8) if f"{recorded:.{digits}g}" != f"{other:.{digits}g}")
    numbers = re.findall(r"-?\d+\.\d+(?= |;|\.|,|$)", PARAGRAPHS[lead].partition("Recorded")[2])
    assert f"(`{trap.case}`" in PARAGRAPHS[lead]
    assert numbers[:2] == [f"{recorded:.{digits}g}", f"{other:.{digits}g}"]


def test_every_recorded_number_of_the_page_belongs_to_a_trap() -> None:
    assert {lead for lead, text in PARAGRAPHS.items() if "Recorded" in text} == set(TRAPS)


def test_stated_error_of_column_sums_is_that_of_the_recorded_case() -> None:
    case = Case("methods2_0", "wkd_logit")
    inputs = {name: value.detach() for name, value in case.inputs.items()}
    assert f"up\nto {100 * column_error(inputs, case.options):.0f} %" in PARAGRAPHS["Ten rounds"]
