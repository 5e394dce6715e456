"""Test the comparison of predictions, with a cut of CIFAR-100."""

from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.predictions import PLAIN, Prediction, table
from hsakd_pl import create_network


def test_evaluation_predicts_as_the_plain_pass(
    cifar_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_network("resnet8", num_classes=100).state_dict(), tmp_path / "resnet8.pth")
    main(["predictions", "--network", "resnet8", "--weights", str(tmp_path / "resnet8.pth"), "--data", str(cifar_mini)])
    _, _, plain, fast, bf16, *_ = capsys.readouterr().out.splitlines()
    assert plain.startswith(f"| {PLAIN} |") and "evaluation, bf16" in bf16
    same, images = fast.split("|")[2].strip().split(" of ")
    assert same == images


def test_other_classes_are_counted_with_their_margins() -> None:
    plain = torch.tensor([[2.0, 0.0], [0.0, 0.25], [1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[2.0, 0.0], [0.5, 0.25], [1.0, 0.0], [0.0, 1.0]])
    *_, line = table({PLAIN: Prediction(plain, 2.0), "other": Prediction(other, 1.0)}, torch.tensor([0, 1]))
    assert line == "| other | 3 of 4 | 50.00 % | 0.25 | 5.0e-01 | 50.00 % | 2.00 |"
