"""Test that Ctrl-C, SIGTERM, kills and second writers end a run properly, and that it resumes exactly."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import kills
import programs
import pytest
import pytorch_lightning as pl
import torch
from small import error_of, run

from hsakd_pl.errors import UsageError
from hsakd_pl.files.lock import sole_writer
from hsakd_pl.runs.checkpoints import LastCheckpoint
from hsakd_pl.runs.signals import Interrupted


class Signal(pl.Callback):
    """Send a signal to this process in step ``at``, or during the validation of epoch ``validating``."""

    def __init__(self, signum: int, at: int = -1, validating: int = -1) -> None:
        self.signum, self.at, self.validating = signum, at, validating

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), self.signum)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.validating:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def fit(*options: str, folder: str = "run", callbacks: list[Any] | None = None, **trainer: Any) -> Any:
    """Train 2 epochs of 4 batches and return the last checkpoint."""
    limits = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "default_root_dir": folder}
    run("fit", *options, trainer={**limits, "callbacks": callbacks, **trainer})
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)


def interrupted(capsys: pytest.CaptureFixture[str], **init_args: Any) -> tuple[int, str]:
    """Return the exit status and output of a fit that gets a signal."""
    with pytest.raises(SystemExit) as end:
        fit(callbacks=[{"class_path": "test_interruptions.Signal", "init_args": init_args}])
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


def assert_same(one: Any, other: Any) -> None:
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def row(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "result.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setattr(sys, "argv", ["main.py"])
        fit()
        return Path("run").absolute()


MOMENTS: list[tuple[dict[str, int], int]] = [({"at": 1}, 2), ({"at": 5}, 6), ({"at": 3}, 4), ({"validating": 0}, 4)]


@pytest.mark.parametrize(
    ("signum", "status", "moment", "steps"),
    [
        *((signal.SIGTERM, 143, *moment) for moment in MOMENTS),
        (signal.SIGINT, 130, *MOMENTS[1]),
        *(pytest.param(signal.SIGINT, 130, *MOMENTS[k], marks=pytest.mark.nightly) for k in (0, 2, 3)),
    ],
    ids=str,
)
def test_signal_saves_checkpoint_and_printed_command_resumes(
    signum: int, status: int, moment: dict[str, int], steps: int, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = interrupted(capsys, signum=int(signum), **moment)
    assert found == status
    assert f"after {steps} steps: run/last.ckpt holds all of it" in said
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == steps
    assert not Path("run/result.json").exists() or not row("run")["finished"]
    command = shlex.split(said.strip().splitlines()[-1])
    assert command == ["python", "main.py", "fit", "--config", "config.yaml", "--ckpt_path", "last"]
    assert_same(fit("--ckpt_path", "last"), torch.load(whole / "last.ckpt", weights_only=True))
    assert row("run")["metrics"] == row(str(whole))["metrics"]  # the interrupted epoch's means among them
    images = 8 * 64
    assert row("run")["images_per_second"] * row("run")["seconds"] >= 0.9 * images  # training took a part of it


def test_signal_handlers_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    interrupted(capsys, signum=int(signal.SIGINT), at=1)
    assert {signum: signal.getsignal(signum) for signum in before} == before


def test_run_in_another_thread_trains_without_signal_handlers() -> None:
    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert Path("run/result.json").exists()


def test_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signals = LastCheckpoint(tmp_path, 10, "").signals
    signals._note(signal.SIGINT, None)
    signals._note(signal.SIGINT, None)  # which torchrun repeats
    monkeypatch.setattr(time, "monotonic", lambda: signals.received_at + 3)
    with pytest.raises(Interrupted):
        signals._note(signal.SIGINT, None)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_non_positive_save_every_minutes_raises(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "save_every_minutes" in error_of(capsys, lambda: fit("--save_every_minutes", minutes))


class Count(pl.Callback):
    """Record the steps at which a checkpoint is written."""

    def __init__(self) -> None:
        self.path = Path("saved")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.global_step} ")


@pytest.mark.parametrize(("minutes", "steps"), [("1e-9", "1 2 3 4 4 5 6 7 8"), ("10", "4 4 8")])
def test_save_every_minutes_saves_inside_an_epoch(minutes: str, steps: str) -> None:
    fit("--save_every_minutes", minutes, callbacks=[{"class_path": "test_interruptions.Count"}])
    assert Path("saved").read_text().split() == steps.split()


def test_second_writer_is_refused_while_first_lives(capsys: pytest.CaptureFixture[str]) -> None:
    hold = "from hsakd_pl.files.lock import sole_writer\nwith sole_writer('run'): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline()
        assert f"run is in use by process {first.pid} on " in error_of(capsys, fit)
        predict = {"model": {"init_args": {"weights": "random"}}, "trainer": {"default_root_dir": "run"}}
        assert "is in use by" in error_of(capsys, lambda: run("predict", **predict))
        first.kill()
    fit()


def test_lock_is_not_inherited_and_not_a_link(tmp_path: Path) -> None:
    with sole_writer(tmp_path), subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        pass_on = child
        child.kill()
    assert pass_on.returncode
    with sole_writer(tmp_path):
        pass
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.writer").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match=r"\.writer: .*symbolic"), sole_writer(tmp_path / "linked"):
        pass
    assert not (tmp_path / "precious").exists()


def test_runs_killed_at_random_moments_resume() -> None:
    """Run a short version; `python tests/kills.py` kills 200 times."""
    done = programs.run(kills.program, "--kills", "2", "--aimed", "4")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 faults" in done.stdout
