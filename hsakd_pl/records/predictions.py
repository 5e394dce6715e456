"""Writes what ``predict`` finds."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from hsakd_pl.errors import require
from hsakd_pl.files import replacing
from hsakd_pl.modules.metrics import TOP_K

COLUMNS = ("image", "class", "probability", "agreement", "error")
NOT_FINITE = "the network gives no finite probability"


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` and ``predictions.jsonl`` into ``folder``: a row an image, in the order of the data.

    Columns: image, class, probability of that class, in which part of the transformations it is the winner too, and
    instead of these the error where there is no prediction. The lines of JSON hold the same, and under ``top`` the most
    probable classes with their probabilities. Each batch is written when it is there, beside the files of an earlier
    run, whose place the new ones take at the end. On several devices each writes the files of its own rank.

    Args:
        folder: where the files go.
        top: how many classes a line of JSON names, of the five at most that a module's ``predict_step`` gives.
    """

    def __init__(self, folder: str | Path, top: int = TOP_K) -> None:
        super().__init__(write_interval="batch")
        require(1 <= top <= TOP_K, "top", top, f"from 1 to {TOP_K}")
        self.folder, self.top = Path(folder), top
        self._open = ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._path = self.folder / f"predictions{rank}.csv"
        self._writer = csv.writer(self._open.enter_context(replacing(self._path, newline="", buffering=1)))
        self._writer.writerow(COLUMNS)
        self._lines = self._open.enter_context(replacing(self._path.with_suffix(".jsonl"), buffering=1))
        description = getattr(trainer, "datamodule", None) or getattr(pl_module, "description", None)
        self._names = getattr(description, "class_names", None)
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
        keys = ("class", "probability", "agreement", "top_class", "top_probability")
        found = (prediction[key].tolist() for key in keys)
        for source, error, *cells in zip(prediction["source"], prediction["error"], *found, strict=True):
            label, probability, agreement, *best = cells
            self._images += 1
            self._unread += error != ""
            if not error and not isfinite(probability):
                self._not_finite += 1
                error = NOT_FINITE
            name, *names = (str(self._names[each] if self._names else each) for each in (label, *best[0]))
            cells = ["", "", ""] if error else [_text(name), f"{probability:.6f}", f"{agreement:.2f}"]
            self._writer.writerow([_text(source), *cells, _text(error)])
            top = [{"class": each, "probability": round(p, 6)} for each, p in zip(names, best[1], strict=True)]
            told = {"class": name, "probability": round(probability, 6), "agreement": agreement, "top": top[: self.top]}
            self._lines.write(json.dumps({"image": source, **({"error": error} if error else told)}) + "\n")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open.close()
        _print(f"predictions are in {self._path}, with the next most probable classes in {self._path.stem}.jsonl")
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
