"""Test that a run interrupted after an epoch and resumed on the command line equals an uninterrupted one bit by bit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import history, run

from hsakd_pl import create_network

NETWORKS = {
    "BaselineModule": {},
    "TeacherModule": {},
    "StudentModule": {"teacher": "resnet14", "teacher_weights": "teacher.pth"},
    "MutualModule": {"networks": ["resnet8", "wrn_16_1"]},
}


def fit(module: str, root: Path, folder: str, epochs: int, *options: str) -> dict[str, Any]:
    """Train up to ``epochs`` and return the checkpoint."""
    run(
        "fit",
        *options,
        module=module,
        model={"init_args": {**NETWORKS[module], "milestones": [1], "branch_metrics_every": 1}},
        data={"class_path": "hsakd_pl.CIFAR100DataModule", "init_args": {"root": str(root), "batch_size": 16}},
        trainer={"max_epochs": epochs, "limit_train_batches": 3, "limit_val_batches": 1, "default_root_dir": folder},
    )
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)


@pytest.mark.parametrize("module", NETWORKS)
def test_resumed_run_equals_uninterrupted_bitwise(
    module: str, cifar_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    torch.save(create_network("resnet14", 100).state_dict(), "teacher.pth")
    whole = fit(module, cifar_mini, "whole", 2)
    half = fit(module, cifar_mini, "parts", 1)
    resumed = fit(module, cifar_mini, "parts", 2, "--ckpt_path", "parts/last.ckpt")
    assert (half["epoch"], half["global_step"]) == (0, 3)
    assert (resumed["epoch"], resumed["global_step"]) == (whole["epoch"], whole["global_step"]) == (1, 6)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    assert any(not torch.equal(tensor, half["state_dict"][key]) for key, tensor in whole["state_dict"].items())
    assert history("parts") == history("whole")
    assert {"train/loss", "val/acc", "val/loss"} <= set(history("whole")[1])
