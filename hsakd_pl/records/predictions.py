"""The files of ``predict``: ``predictions.csv`` and ``predictions.jsonl``."""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.files import naming, replacing
from hsakd_pl.files.escaping import for_spreadsheet, show
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.modules.metrics import TOP_K
from hsakd_pl.modules.trainers import is_trial
from hsakd_pl.records.formats import read_predictions
from hsakd_pl.records.text_table import text_table

DIGITS = 12  # of the digest of the weights
COLUMNS = ("image", "class", "probability", "agreement", "error")
SHOWN_IMAGES = 5  # on the terminal
NOT_FINITE = "the network gives no finite probability"


class PredictionWriter(BasePredictionWriter):
    """Write ``predictions.csv`` and ``predictions.jsonl``, with one row per image in the order of the data.

    Columns: image (its path, or its number, from 0, if the loader gives none), class, probability of that class,
    agreement (the fraction of the transformations under which that class is the most probable), and error, which
    replaces the other values if an image cannot be predicted. The lines of JSON contain the same, the most probable
    classes with their probabilities (``top``), and the digest of the weights (``weights``). Batches are written as they
    arrive, to new files that replace those of an earlier run at the end. On several devices each writes the files of
    its own rank. A trial with ``fast_dev_run`` writes nothing.

    Args:
        folder: folder of the files.
        top: number of classes in a line of JSON, at most the five that a module's ``predict_step`` returns.
        option: option of the command line that names the folder. With it, predictions of other weights are not
            replaced, nor those of images that exist and would not be predicted: UsageError before the first batch.
        how: what predicts, in words: at the end it is printed with a table of a few images, spread over all.
    """

    def __init__(self, folder: str | Path, top: int = TOP_K, option: str | None = None, how: str | None = None) -> None:
        super().__init__(write_interval="batch")
        require(1 <= top <= TOP_K, "top", top, f"from 1 to {TOP_K}")
        self.folder = Path(folder)
        self.top = top
        self.option = option
        self.how = how
        self._is_trial = False
        self._open_files = ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_trial = is_trial(trainer)
        if self._is_trial:
            return
        self._weights = digest_of_predictor(pl_module)
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._path = self.folder / f"predictions{rank}.csv"
        planned = _planned_images(trainer)
        if self.option is not None:
            check_replaceable(self._path, self._weights, planned, f"--{self.option}")
        self._shown_images = spread(len(planned or ()), SHOWN_IMAGES)
        self._common_folder = os.path.commonpath([os.path.dirname(path) for path in planned]) if planned else None
        self._writer = csv.writer(self._open_files.enter_context(replacing(self._path, newline="", buffering=1)))
        self._writer.writerow(COLUMNS)
        self._lines = self._open_files.enter_context(replacing(self._path.with_suffix(".jsonl"), buffering=1))
        description = getattr(trainer, "datamodule", None) or getattr(pl_module, "description", None)
        self._class_names = getattr(description, "class_names", None)
        self._images = 0
        self._unread = 0
        self._not_finite = 0
        self._shown: list[dict[str, str]] = []

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
        for row in () if self._is_trial else _rows_of(prediction):
            if row["source"] is None:
                row["source"] = f"image {self._images}"
            is_shown = self.how is not None and self._images in self._shown_images
            self._images += 1
            self._unread += 1 if row["error"] else 0
            if not row["error"] and not math.isfinite(row["probability"]):
                self._not_finite += 1
                row["error"] = NOT_FINITE
            with naming(self._path):  # a full disk
                self._write_csv(row)
                self._write_json(row)
            if is_shown:
                self._shown.append(self._summary_of(row))

    def _write_csv(self, row: dict[str, Any]) -> None:
        cells = ["", "", ""]
        if not row["error"]:
            cells = [for_spreadsheet(self._name(row["class"])), f"{row['probability']:.6f}", f"{row['agreement']:.4f}"]
        self._writer.writerow([for_spreadsheet(row["source"]), *cells, for_spreadsheet(row["error"])])

    def _write_json(self, row: dict[str, Any]) -> None:
        if row["error"]:
            line = {"image": row["source"], "error": row["error"], "weights": self._weights}
            self._lines.write(json.dumps(line) + "\n")
            return
        top = [
            {"class": self._name(label), "probability": round(probability, 6)}
            for label, probability in zip(row["top_class"], row["top_probability"], strict=True)
        ]
        line = {
            "image": row["source"],
            "class": self._name(row["class"]),
            "probability": round(row["probability"], 6),
            "agreement": round(row["agreement"], 4),
            "top": top[: self.top],
            "weights": self._weights,
        }
        self._lines.write(json.dumps(line) + "\n")

    def _summary_of(self, row: dict[str, Any]) -> dict[str, str]:
        """Return a row of the table on the terminal."""
        image = row["source"]
        if self._common_folder is not None:
            image = os.path.relpath(image, self._common_folder)
        values = {"image": image, "class": "", "probability": "", "agreement": "", "note": ""}
        if row["error"]:
            return values | {"note": NOT_FINITE if row["error"] == NOT_FINITE else "could not be read"}
        name = self._name(row["class"])
        return values | {
            "class": name,
            "probability": f"{row['probability']:.4f}",
            "agreement": f"{row['agreement']:.4f}",
        }

    def _name(self, label: int) -> str:
        return str(self._class_names[label] if self._class_names else label)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_trial:
            return
        self._open_files.close()
        if self._shown:
            show(text_table(self._shown))
            if self._images > len(self._shown):
                show(f"and {self._images - len(self._shown):,} more")
        if self.how is not None:
            show(f"{counted(self._images, 'image')} predicted with {self.how}")
        show(f"predictions are in {self._path}, with the next most probable classes in {self._path.stem}.jsonl")
        for count, reason in ((self._unread, "could not be read"), (self._not_finite, "have no finite probability")):
            if count:
                show(f"{count:,} of {counted(self._images, 'image')} {reason}: see the column error")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the predictions of an earlier run."""
        with suppress(UsageError):  # names the files, but the exception is not about them
            self._open_files.__exit__(type(exception), exception, exception.__traceback__)


def spread(count: int, most: int) -> range:
    """Return at most ``most`` of the numbers below ``count``, at equal distances; the first ones if it is 0, unknown.

    Examples:
        >>> list(spread(200, 5))
        [0, 40, 80, 120, 160]
    """
    return range(0, count, math.ceil(count / most)) if count else range(most)


def digest_of_predictor(module: Any) -> str:
    """Return the digest of what predicts: that which the module states, or that of its networks."""
    stated = getattr(module, "predictions_digest", None)
    if isinstance(stated, str):
        return stated
    networks = getattr(module, "networks", None)
    if not networks:  # a module of a user
        return weights_digest(module.state_dict())[:DIGITS]
    return digest_of_networks(networks)


def digest_of_networks(networks: Iterable[Any]) -> str:
    """Return the digest of networks without their branches, which differ between a run and its export."""
    weights = {}
    for number, network in enumerate(networks):
        for name, tensor in network.without_branches.state_dict().items():
            weights[f"{number}.{name}"] = tensor
    return weights_digest(weights)[:DIGITS]


def check_replaceable(path: Path, weights: str, images: Sequence[str] | None, option: str) -> None:
    """Raise UsageError if predictions must not replace those in a file.

    Args:
        path: a ``predictions.csv``; the lines of JSON next to it say what it contains.
        weights: digest of the weights that predict.
        images: paths of the images that they predict; None if these are not known.
        option: option that names the folder, for the error.
    """
    with naming(path):
        if not path.exists() and not path.with_suffix(".jsonl").exists():
            return
    remedy = f"name another folder with {option}, or remove the file"
    planned = {os.path.abspath(image) for image in images or ()}
    lines = read_predictions(path.with_suffix(".jsonl"))
    for line in chain([next(lines, {})], lines):  # a file without lines does not say anything either
        if line.get("weights") != weights:
            raise UsageError(f"{path} has predictions of other weights, or does not say of which: {remedy}")
        image = os.path.abspath(str(line.get("image")))
        if images is not None and image not in planned and os.path.exists(image):
            raise UsageError(f"{path} has predictions of other images, such as {image}: {remedy}")


def _planned_images(trainer: pl.Trainer) -> Sequence[str] | None:
    """Return the paths of the images that are predicted, in order; None if they are not known."""
    loader: Any = trainer.predict_dataloaders
    paths = getattr(loader, "paths", None)
    is_limited = isinstance(trainer.limit_predict_batches, int) or trainer.limit_predict_batches < 1
    if paths is None or not is_limited:
        return paths
    images_per_batch = math.ceil(len(paths) / max(1, len(loader)))
    return paths[: int(trainer.num_predict_batches[0]) * images_per_batch]


def _rows_of(prediction: Any) -> Iterator[dict[str, Any]]:
    """Yield the prediction of each image of a batch, as plain data."""
    columns = {"source": prediction["source"], "error": prediction["error"]}
    for name in ("class", "probability", "agreement", "top_class", "top_probability"):
        columns[name] = prediction[name].tolist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
