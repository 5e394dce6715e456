"""``metrics.csv`` and ``curves.png``: the course of a run, epoch by epoch."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.modules.trainers import is_trial
from hsakd_pl.records.curves import save_curves
from hsakd_pl.records.formats import HISTORY_FILE, STEP_COLUMNS, finite, of_validation, read_history


class History(pl.Callback):
    """Write ``metrics.csv``, with one row per epoch and per logged step, and ``curves.png`` when a fit ends.

    Columns: epoch (from 1), step, lr, and all logged metrics by name; those of a validation only in its epoch. A
    resumed run continues below the rows that its checkpoint knows. The file is always replaced as a whole, so that it
    is complete after a kill.

    Args:
        folder: folder of both files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []
        self.val_metrics: dict[str, float | None] = {}  # of the last validation in the current epoch
        self._lr = 0.0
        self._written_rows = 0

    def state_dict(self) -> dict[str, Any]:
        return {"val_metrics": self.val_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.val_metrics = state_dict["val_metrics"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.trainer = trainer
        is_resumed = trainer.global_step > 0
        rows = read_history(self.folder / HISTORY_FILE) if is_resumed and trainer.is_global_zero else []
        rows = [row | {name: int(row[name]) for name in ("epoch", "step") if name in row} for row in rows]
        self.rows = [row for row in rows if row.get("step", 0) <= trainer.global_step and not self._is_open(row)]
        self._written_rows = len(self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.val_metrics = {}

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.val_metrics = of_validation(finite(trainer.callback_metrics))

    def _is_open(self, row: dict[str, float]) -> bool:
        """Return True for the row of an epoch that was stopped before its last batch, and is resumed."""
        return row["epoch"] > self.trainer.current_epoch and not row.keys() <= STEP_COLUMNS

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # after the epoch it is the next one's

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the metrics of a step, counted from 0, as a row."""
        self.rows.append({"epoch": self.trainer.current_epoch + 1, "step": step + 1, "lr": self._lr, **metrics})

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = finite(trainer.callback_metrics)
        metrics = {name: metrics[name] for name in metrics.keys() - of_validation(metrics).keys()} | self.val_metrics
        place = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self._lr}
        self.rows.append(place | {name: value for name, value in sorted(metrics.items()) if value is not None})
        self._write(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if len(self.rows) > self._written_rows:  # logged steps of an epoch that may be resumed here
            self._write(trainer)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if _writes(trainer) and self.rows:
            try:
                save_curves({"": [self.rows]}, self.folder / "curves.png")
            except UsageError as error:
                rank_zero_info(f"No curves.png: {error}")

    def _write(self, trainer: pl.Trainer) -> None:
        self._written_rows = len(self.rows)
        if _writes(trainer):
            columns = dict.fromkeys(name for row in self.rows for name in row)
            with replacing(self.folder / HISTORY_FILE, newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)


def _writes(trainer: pl.Trainer) -> bool:
    """Return whether this process writes the files: the first one, unless the fit is a trial."""
    return trainer.is_global_zero and not is_trial(trainer)
