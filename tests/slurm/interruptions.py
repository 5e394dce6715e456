"""What a run under test does to its own job; each start and task notes the steps it took."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Interruptions(pl.Callback):
    """At its first start the job gets SLURM's signal in epoch 0; at its second one it is killed in epoch 2.

    ``folder`` receives ``<start>.<rank>``: the checkpoint's step, if there was one, then those trained.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.start = int(os.environ.get("SLURM_RESTART_COUNT", 0))

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._note(trainer, f"from {checkpoint['global_step']}")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note(trainer, str(trainer.global_step))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        job, at = os.environ.get("SLURM_JOB_ID"), (self.start, trainer.global_step)
        if job is not None and trainer.is_global_zero and at == (0, 2):
            subprocess.run(["scancel", "--signal=USR1", job], check=True)
        if job is not None and trainer.is_global_zero and at == (1, 18):
            subprocess.run(["scontrol", "requeue", job], check=True)

    def _note(self, trainer: pl.Trainer, line: str) -> None:
        with (self.folder / f"{self.start}.{trainer.global_rank}").open("a") as file:
            file.write(line + "\n")
