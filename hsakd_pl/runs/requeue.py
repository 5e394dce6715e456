"""SLURM: a job that is sent away continues where it was. Lightning saves and requeues; here is when, and from what."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from hsakd_pl.weights import read_weights


class RequeueBetweenSteps(pl.Callback):
    """Lets Lightning's handler of SIGUSR1 run after a whole optimizer step, after the same one in all processes.

    Left alone it runs wherever each process happens to be: the batch in work would be neither trained nor repeated,
    and a process in another step would wait for ever. The last batch of an epoch waits for the validation after it.
    """

    def __init__(self) -> None:
        self.signalled = False
        self.save_and_requeue: Any = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()  # workers are started from here on, and inherit what the signal does

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if callable(self.save_and_requeue) and stepped and self._any_signalled(trainer):
            self.signalled = False
            # Lightning's handler of SIGTERM talks to the other processes, in the middle of anything: end at once
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.save_and_requeue(signal.SIGUSR1, None)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["slurm_job"] = os.environ.get("SLURM_JOB_ID")

    def _take_over(self) -> None:
        handler = signal.getsignal(signal.SIGUSR1)
        if callable(handler) and handler != self._note:  # Lightning's, in a job that may be requeued
            self.save_and_requeue = handler
            signal.signal(signal.SIGUSR1, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signalled = True

    def _any_signalled(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.signalled, all=False))


def saved_checkpoints(folder: str | Path, names: tuple[str, ...]) -> list[Path]:
    """The files in ``folder`` that match one of ``names``, the newest first."""
    found = [path for name in names for path in Path(folder).glob(name)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def saved_by_this_job(path: Path) -> bool:
    """Whether an earlier start of this SLURM job, before it was requeued, wrote the checkpoint."""
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    return requeued and read_weights(path).get("slurm_job") == os.environ["SLURM_JOB_ID"]
