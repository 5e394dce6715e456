"""Test jobs that SLURM starts, stops or requeues; tests/slurm does this with SLURM itself."""

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
    """Raised as if SLURM killed the process."""


class Signal(pl.Callback):
    """Send SLURM's signal in step ``at``, and end the process once it has been requeued.

    With ``killed_at``, end the process before that step instead, without a signal.
    """

    def __init__(self, at: int = -1, killed_at: int = -1, signum: int = int(signal.SIGUSR1)) -> None:
        self.at, self.killed_at, self.signum = at, killed_at, signum

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.killed_at:
            raise KilledError
        if trainer.global_step == self.at:
            os.kill(os.getpid(), self.signum)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if Path("requeued").exists():
            raise KilledError


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate the only task of job 7 at its first start, with an ``scontrol`` that records its arguments."""
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


def fit(*options: str, folder: str = "job", interrupted: dict[str, Any] | None = None, **trainer: Any) -> Any:
    """Train 2 epochs of 4 batches and return the last checkpoint, unless the run is ``interrupted``."""
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
        pytest.param(3, 1, 4, id="in the last batch before validation"),
        pytest.param(0, 2, 1, id="accumulating gradients"),
    ],
)
def test_requeued_job_continues_at_exact_step(job: pytest.MonkeyPatch, at: int, accumulated: int, saved: int) -> None:
    whole = fit(folder="whole", accumulate_grad_batches=accumulated)
    fit(interrupted={"at": at}, accumulate_grad_batches=accumulated)
    assert Path("requeued").read_text() == "requeue 7\n"
    assert torch.load("job/last.ckpt", weights_only=True)["global_step"] == saved
    start_again(job)
    assert_same(fit(accumulate_grad_batches=accumulated), whole)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_either_signal_requeues_the_array_task(job: pytest.MonkeyPatch, signum: int) -> None:
    for part, value in (("JOB", "5"), ("TASK", "2")):
        job.setenv(f"SLURM_ARRAY_{part}_ID", value)
    fit(interrupted={"at": 1, "signum": int(signum)})
    assert Path("requeued").read_text() == "requeue 5_2\n"


def test_custom_signal_handler_runs_after_saving(job: pytest.MonkeyPatch) -> None:
    """Install a handler like submitit's, which restarts its job by itself."""

    def handler(signum: int, frame: Any) -> None:
        Path("requeued").write_text(f"step {torch.load('job/last.ckpt', weights_only=True)['global_step']}")

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        fit(interrupted={"at": 1, "signum": int(signal.SIGUSR2)})
        assert signal.getsignal(signal.SIGUSR2) is handler
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert Path("requeued").read_text() == "step 2"


def test_killed_job_continues_from_newest_checkpoint(job: pytest.MonkeyPatch) -> None:
    whole = fit(folder="whole")
    fit(interrupted={"at": 1})
    start_again(job)
    fit(interrupted={"killed_at": 6})
    assert torch.load("job/last.ckpt", weights_only=True)["global_step"] == 4
    assert_same(fit(), whole)


def test_requeued_job_prefers_its_own_checkpoint(job: pytest.MonkeyPatch) -> None:
    whole = fit(folder="whole")
    fit(folder="first", max_epochs=1)
    fit("--ckpt_path", "first/last.ckpt", interrupted={"at": 5})
    start_again(job)
    assert_same(fit("--ckpt_path", "first/last.ckpt", max_epochs=2), whole)


def test_checkpoint_of_another_job_is_not_continued(
    job: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(interrupted={"at": 1})
    start_again(job)
    job.setenv("SLURM_JOB_ID", "8")
    assert "job/last.ckpt is the result of an earlier run" in error_of(capsys, fit)
    assert fit("--ckpt_path", "last")["global_step"] == 8


def test_lightning_requeue_checkpoint_is_not_evaluated_unasked(
    job: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    Path("job/last.ckpt").rename("job/hpc_ckpt_1.ckpt")
    network: dict[str, Any] = {"trainer": {"default_root_dir": "job"}, "model": {"init_args": {"weights": "random"}}}
    assert "job/hpc_ckpt_1.ckpt was left by an interrupted run" in error_of(capsys, lambda: run("test", **network))
    assert "job/hpc_ckpt_1.ckpt is the result of an earlier run" in error_of(capsys, fit)
    run("test", "--ckpt_path", "hpc", **network)


def test_requeued_finished_job_changes_nothing(job: pytest.MonkeyPatch) -> None:
    before = fit()
    row = Path("job/result.json").read_text()
    start_again(job)
    assert_same(fit(), before)
    assert Path("job/result.json").read_text() == row
