"""Interrupt the job of a run under test; each start and task records its steps."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from hsakd_pl.runs.checkpoints import STEPS_BETWEEN_AGREEMENTS, LastCheckpoint


class Interruptions(pl.Callback):
    """Send SLURM's signal in step 2 of the first start, and kill the second start in step 26.

    ``folder`` receives ``<start>.<rank>``: the checkpoint's step, if there was one, then the trained steps.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.job = os.environ.get("SLURM_JOB_ID")
        self.start = int(os.environ.get("SLURM_RESTART_COUNT", 0))

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._note(trainer, f"from {checkpoint['global_step']}")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.job is not None and (self.start, trainer.global_step) == (0, STEPS_BETWEEN_AGREEMENTS):
            time.sleep(900)  # until SLURM ends this start
        self._note(trainer, str(trainer.global_step))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.job is None or not trainer.is_global_zero:
            return
        if (self.start, trainer.global_step) == (0, 2):
            subprocess.run(["scancel", "--signal=USR1", self.job], check=True)
            (last,) = (callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))
            while not last.signals.received:
                time.sleep(0.01)
        if (self.start, trainer.global_step) == (1, 26):
            subprocess.run(["scontrol", "requeue", self.job], check=True)
            time.sleep(900)

    def _note(self, trainer: pl.Trainer, line: str) -> None:
        with (self.folder / f"{self.start}.{trainer.global_rank}").open("a") as file:
            file.write(line + "\n")
