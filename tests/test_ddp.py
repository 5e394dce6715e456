"""Test that two processes with half of each batch, or two consecutive halves, equal one process with all."""

from functools import partial
from typing import Any

import pytest
import torch
from ddp_run import main, train
from programs import run_on_two

from hsakd_pl.fast.compiled import MINIMUM_TORCH

KINDS = ("teacher", "frozen", "student", "mutual", "baseline", "few", "hinton")
if torch.__version__ >= MINIMUM_TORCH:
    KINDS += ("compiled",)


def compare(found: dict[str, Any], expected: dict[str, Any], kind: str, least: int = 21) -> None:
    assert len(expected["gradients"]) >= least
    for part in ("gradients", "state"):
        said = partial("{}, {}: {}".format, kind, part)
        torch.testing.assert_close(found[part], expected[part], rtol=1e-9, atol=1e-12, msg=said)
    # 44 images in batches of 16 leave 12: every image counts once on either number of processes, and a single one on
    # that of two which has it
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6), kind
    assert "val/acc" in found["metrics"]


# Five batches, of which two make a step: the last step has one; in all but CRD's, rows of a batch do not meet
SHORTER = ("student", "mutual", "hinton", "crd")


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all kinds at once, since two processes take seconds to find each other."""
    out = tmp_path_factory.mktemp("ddp") / "out.pt"
    kinds = [f"{kind} fixed" for kind in KINDS]
    run_on_two(main, *kinds, "student batch", *(f"{kind} fixed 2 5" for kind in SHORTER), str(out))
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ddp_with_two_processes_equals_one(kind: str, trained_by_two: dict[str, Any]) -> None:
    """Compare with fixed batch norm statistics."""
    compare(trained_by_two[f"{kind} fixed"], train("plain" if kind == "compiled" else kind), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHORTER)
def test_shorter_last_window_of_two_processes_equals_that_of_one(kind: str, trained_by_two: dict[str, Any]) -> None:
    shorter = trained_by_two[f"{kind} fixed 2 5"]
    compare(shorter, train(kind, accumulated="2", batches="5"), kind)
    full = train(kind, accumulated="2")
    name, gradient = next(iter(full["gradients"].items()))
    assert not torch.allclose(shorter["gradients"][name], gradient)


@pytest.mark.slow
def test_statistics_of_each_process_change_the_loss_little(trained_by_two: dict[str, Any]) -> None:
    """Batch norm has the statistics of each process, as published."""
    two, one = (each["metrics"]["train/loss"] for each in (trained_by_two["student batch"], train("student", "batch")))
    assert two == pytest.approx(one, rel=0.1) and two != one


@pytest.mark.slow
@pytest.mark.parametrize(("difference", "said"), [("image", "number of images (540 and 539)"), ("label", "labels")])
def test_processes_with_different_data_refuse(difference: str, said: str, trained_by_two: dict[str, Any]) -> None:
    messages = trained_by_two["refusals"][difference].split(" / ")
    assert len(messages) == 2 and all(said in message for message in messages)
    assert all("test split of process 1 differs from that of process 0" in message for message in messages)


def test_accumulated_gradients_equal_whole_batch() -> None:
    compare(train("student", accumulated="2"), train("student"), "student")
