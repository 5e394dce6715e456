"""Test that each callback of Lightning continues exactly when a run is resumed, or is refused with the reason."""

import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from small import error_of, history, run

from hsakd_pl.records.callbacks import OBSERVERS, TUNERS
from hsakd_pl.runs.callbacks import BETWEEN_EPOCHS, NEVER

LIMITS = {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 2}  # 4 steps per epoch
LIGHTNING = "pytorch_lightning.callbacks"
further = pytest.mark.nightly


class Finetuning(callbacks.BaseFinetuning):
    """Unfreeze the first stage in epoch 1."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.networks[0].without_branches.stages[0])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.networks[0].without_branches.stages[0], optimizer, lr=0.1)


SWA = (f"{LIGHTNING}.StochasticWeightAveraging", {"swa_lrs": 0.05, "swa_epoch_start": 1})
# Callbacks and their options that continue exactly, and the step to which a run stopped after step 6 returns
EXACT: dict[str, Any] = {
    "GradientAccumulationScheduler": (f"{LIGHTNING}.GradientAccumulationScheduler", {"scheduling": {0: 2, 1: 1}}, 4),
    "StochasticWeightAveraging": (*SWA, 4),
    "EMAWeightAveraging": (f"{LIGHTNING}.EMAWeightAveraging", {"decay": 0.5}, 6),
    "WeightAveraging": (f"{LIGHTNING}.WeightAveraging", {}, 6),
    "EarlyStopping": (f"{LIGHTNING}.EarlyStopping", {"monitor": "val/loss", "patience": 5}, 6),
    "LambdaCallback": (f"{LIGHTNING}.LambdaCallback", {}, 6),
}
# Classes that other ones extend or that end a run with an error
ABSTRACT = ("BaseFinetuning", "Callback", "Checkpoint", "SpikeDetection")


def entry(path: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": path, "init_args": options}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def fit(*options: str, folder: str = "run", **trainer: Any) -> None:
    slow = {"init_args": {"fast": False}}  # which ModelPruning needs
    run("fit", *options, model=slow, trainer={**LIMITS, "default_root_dir": folder, **trainer})


def interrupted(step: int, *others: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    """Stop a fit by a signal after a step, and return the checkpoint."""
    stop = entry("test_interruptions.Signal", {"signum": 15, "at": step - 1})
    with pytest.raises(SystemExit):
        fit(callbacks=[*others, stop], **trainer)
    return torch.load("run/last.ckpt", weights_only=True)


IN_CI = ("GradientAccumulationScheduler", "StochasticWeightAveraging")


@pytest.mark.parametrize("name", [name if name in IN_CI else pytest.param(name, marks=further) for name in EXACT])
def test_callback_continues_exactly_inside_an_epoch(name: str) -> None:
    if not hasattr(callbacks, name):
        pytest.skip(f"this version of Lightning has no {name}")
    path, options, saved_step = EXACT[name]
    callback = entry(path, options)
    fit(folder="whole", callbacks=[callback])
    stopped_after = 4 if name == "GradientAccumulationScheduler" else 6
    assert interrupted(stopped_after, callback)["global_step"] == saved_step
    fit("--ckpt_path", "last", callbacks=[callback])
    found, expected = (torch.load(Path(folder, "last.ckpt"), weights_only=True) for folder in ("run", "whole"))
    for part in ("global_step", "state_dict", "optimizer_states"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert history("run") == history("whole")


def test_callback_that_cannot_continue_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(2)
    refused = {
        "StochasticWeightAveraging can only be resumed between epochs": entry(*SWA),
        "ModelPruning cannot be resumed": entry(f"{LIGHTNING}.ModelPruning", {"pruning_fn": "l1_unstructured"}),
        "Finetuning cannot be resumed": entry(f"{__name__}.Finetuning", {}),
    }
    before = Path("run/last.ckpt").read_bytes()
    for reason, callback in refused.items():
        message = error_of(capsys, lambda callback=callback: fit("--ckpt_path", "last", callbacks=[callback]))
        assert message.startswith("trainer.callbacks: ") and reason in message
    assert Path("run/last.ckpt").read_bytes() == before


def test_every_callback_of_lightning_is_known() -> None:
    exact = tuple(getattr(callbacks, name) for name in EXACT if hasattr(callbacks, name))
    known = (*exact, *OBSERVERS, *TUNERS, *NEVER, *BETWEEN_EPOCHS)
    names = [name for name in callbacks.__all__ if not issubclass(getattr(callbacks, name), known)]
    assert set(names) <= {*ABSTRACT}
