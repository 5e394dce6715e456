"""Writes what ``predict`` finds."""

import csv
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from hsakd_pl.files import replacing

COLUMNS = ("image", "class", "probability", "agreement", "error")
NOT_FINITE = "the network gives no finite probability"


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` into ``folder``: a row an image, in the order of the data.

    Columns: image, class, probability of that class, in which part of the four rotations it is the winner too, and
    instead of these the error where there is no prediction. Each batch is written when it is there, beside the file of
    an earlier run, whose place the new one takes at the end. On several devices each writes the file of its own rank.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self._open = ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._path = self.folder / f"predictions{rank}.csv"
        self._writer = csv.writer(self._open.enter_context(replacing(self._path, newline="", buffering=1)))
        self._writer.writerow(COLUMNS)
        self._names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        self._images = self._unread = self._not_finite = 0

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        found = (prediction[key].tolist() for key in ("class", "probability", "agreement"))
        for source, error, *cells in zip(prediction["source"], prediction["error"], *found, strict=True):
            label, probability, agreement = cells
            self._images += 1
            self._unread += error != ""
            if not error and not isfinite(probability):
                self._not_finite += 1
                error = NOT_FINITE
            name = self._names[label] if self._names else label
            cells = ["", "", ""] if error else [_text(str(name)), f"{probability:.6f}", f"{agreement:.2f}"]
            self._writer.writerow([_text(source), *cells, _text(error)])

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open.close()
        _print(f"predictions are in {self._path}")
        for count, reason in ((self._unread, "could not be read"), (self._not_finite, "have no finite probability")):
            if count:
                _print(f"{count:,} of {self._images:,} images {reason}: see the column error")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the predictions of an earlier run as they are."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)


def _text(cell: str) -> str:
    """Keep a spreadsheet from running the cell as a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _print(line: str) -> None:
    """Print a line whatever letters its file names have and the terminal has not."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))
