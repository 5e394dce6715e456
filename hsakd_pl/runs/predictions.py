"""Writes what ``predict`` finds."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` into ``folder``: a row an image, in the order of the data.

    Columns: image, class, probability of that class, and in which part of the four rotations it is the winner too.
    On several devices each writes the file of its own rank.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="epoch")
        self.folder = Path(folder)

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / f"predictions{rank}.csv"
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", "probability", "agreement"])
            for batch in predictions:
                columns = (batch[key] for key in ("source", "class", "probability", "agreement"))
                for source, label, probability, agreement in zip(*columns, strict=True):
                    name = names[label] if names else int(label)
                    writer.writerow([source, name, f"{probability:.6f}", f"{agreement:.2f}"])
        print(f"predictions are in {path}")
