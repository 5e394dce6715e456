"""Test that two processes with half of each batch, or two consecutive halves, equal one process with all."""

from functools import partial
from pathlib import Path
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


@pytest.mark.slow
def test_ddp_with_two_processes_equals_one(tmp_path: Path) -> None:
    """Compare with fixed batch norm statistics; with those of each process, as published, the first losses are close.

    All kinds run in one test, since the processes take seconds to find each other.
    """
    out, runs = tmp_path / "out.pt", [*(f"{kind} fixed" for kind in KINDS), "student batch"]
    run_on_two(main, *runs, str(out))
    trained = torch.load(out, weights_only=True)
    for kind in KINDS:
        compare(trained[f"{kind} fixed"], train("plain" if kind == "compiled" else kind), kind)
    for difference, said in {"image": "number of images (540 and 539)", "label": "labels"}.items():
        messages = trained["refusals"][difference].split(" / ")
        assert len(messages) == 2 and all(said in message for message in messages)
        assert all("test split of process 1 differs from that of process 0" in message for message in messages)
    two, one = (each["metrics"]["train/loss"] for each in (trained["student batch"], train("student", "batch")))
    assert two == pytest.approx(one, rel=0.1) and two != one


def test_accumulated_gradients_equal_whole_batch() -> None:
    compare(train("student", accumulated=2), train("student"), "student")
