"""What a job does that SLURM started, stopped or started again; tests/slurm does it with SLURM itself."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import error_of, run

TASK = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}


class KilledError(Exception):
    """SLURM killed the process."""


class Signal(pl.Callback):
    """Sends SLURM's signal in the middle of step ``at``, and ends the process once it has been requeued.

    With ``killed_at`` it ends it before that step instead, without a signal.
    """

    def __init__(self, at: int = -1, killed_at: int = -1) -> None:
        self.at, self.killed_at = at, killed_at

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.killed_at:
            raise KilledError
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if Path("requeued").exists():
            raise KilledError


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The only task of job 7, at its first start, with an ``scontrol`` that notes its arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    for name, value in {**TASK, "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    return monkeypatch


def fit(*options: str, folder: str = "job", interrupted: dict[str, int] | None = None, **trainer: Any) -> Any:
    """Train 2 epochs of 4 batches; returns the last checkpoint. With ``interrupted`` the run ends on the way."""
    trainer = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, **trainer}
    if interrupted is not None:
        trainer["callbacks"] = [{"class_path": "test_requeue.Signal", "init_args": interrupted}]
        with pytest.raises(KilledError):
            run("fit", *options, trainer={**trainer, "default_root_dir": folder})
        return None
    run("fit", *options, trainer={**trainer, "default_root_dir": folder})
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)


def start_again(job: pytest.MonkeyPatch) -> None:
    job.setenv("SLURM_RESTART_COUNT", "1")
    Path("requeued").unlink(missing_ok=True)


def assert_same(one: Any, other: Any) -> None:
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("at", "accumulated", "saved"),
    [
        pytest.param(1, 1, 2, id="in the middle of an epoch"),
        pytest.param(5, 1, 6, id="with an older last.ckpt"),
        pytest.param(3, 1, 5, id="in the last batch before validation"),
        pytest.param(0, 2, 1, id="accumulating gradients"),
    ],
)
def test_a_requeued_job_continues_at_the_exact_step(
    job: pytest.MonkeyPatch, at: int, accumulated: int, saved: int
) -> None:
    whole = fit(folder="whole", accumulate_grad_batches=accumulated)
    fit(interrupted={"at": at}, accumulate_grad_batches=accumulated)
    assert Path("requeued").read_text() == "requeue 7\n"
    assert torch.load("job/hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == saved
    start_again(job)
    assert_same(fit(accumulate_grad_batches=accumulated), whole)
    assert not list(Path("job").glob("hpc_ckpt_*"))


def test_a_job_killed_without_warning_continues_from_its_newest_checkpoint(
    job: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(folder="whole")
    fit(interrupted={"at": 1})
    start_again(job)
    fit(interrupted={"killed_at": 6})  # last.ckpt is of step 4 now
    assert "Restored all states from the checkpoint at job/hpc_ckpt_1.ckpt" in caplog.text
    assert_same(fit(), whole)
    assert "Restored all states from the checkpoint at job/last.ckpt" in caplog.text


def test_a_requeued_job_prefers_its_own_checkpoint_to_the_one_it_started_from(job: pytest.MonkeyPatch) -> None:
    whole = fit(folder="whole")
    fit(folder="first", max_epochs=1)
    fit("--ckpt_path", "first/last.ckpt", interrupted={"at": 5})
    start_again(job)
    assert_same(fit("--ckpt_path", "first/last.ckpt", max_epochs=2), whole)


def test_what_another_job_left_is_not_continued(job: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fit(interrupted={"at": 1})
    start_again(job)
    job.setenv("SLURM_JOB_ID", "8")
    assert "job/hpc_ckpt_1.ckpt is the result of an earlier run" in error_of(capsys, fit)
    network = {"trainer": {"default_root_dir": "job"}}
    assert "job/hpc_ckpt_1.ckpt was left by an interrupted run" in error_of(capsys, lambda: run("test", **network))
    run("test", "--ckpt_path", "job/hpc_ckpt_1.ckpt", **network)
    assert fit("--ckpt_path", "job/hpc_ckpt_1.ckpt")["global_step"] == 8
    assert not list(Path("job").glob("hpc_ckpt_*"))
    job.setenv("SLURM_JOB_ID", "9")
    assert "job/last.ckpt is the result of an earlier run" in error_of(capsys, fit)


def test_a_finished_job_that_is_requeued_stays_as_it_is(job: pytest.MonkeyPatch) -> None:
    before = fit()
    start_again(job)
    assert_same(fit(), before)
