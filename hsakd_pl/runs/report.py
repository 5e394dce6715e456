"""Write a JSON row for each run, and show many rows as a table."""

import json
import math
import os
import subprocess
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hsakd_pl
from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text, replacing

FILE = "result.json"
# What a table shows of a row
FIELDS = {"last_val_acc": 1, "best_val_acc": 1, "images_per_second": 1e9, "seconds": 1e9}  # and the most it may be
Row = dict[str, Any]


class ResultWriter(pl.Callback):
    """Writes ``result.json`` into ``folder`` when training has ended, whatever interruptions it went through.

    The row: config files, seed, epochs, last and best validation accuracy in [0, 1], all last metrics, seconds of the
    whole fit, training images/s of all devices, device, versions, commit, what the teacher's weights were, and what a
    resumed run did otherwise from some step on. Checkpoints carry what it needs, so that a run which has nothing left
    to train can still write it; a row that is there then stays.
    """

    def __init__(
        self, folder: str | Path, configs: Iterable[str], seed: int, best: ModelCheckpoint, options: dict[str, Any]
    ) -> None:
        self.path, self.configs, self.seed, self.best = Path(folder, FILE), list(configs), seed, best
        self.options, self.changes = options, list[dict[str, Any]]()
        self.spent, self.metrics = {"seconds": 0.0, "train_seconds": 0.0, "images": 0}, dict[str, float | None]()
        self._since_start = self._since_batch = 0.0
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        spent = {**self.spent, "seconds": self._seconds()}
        return {"spent": spent, "metrics": self.metrics, "options": self.options, "changes": self.changes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent.update(state_dict.get("spent", state_dict))  # of older checkpoints it is all
        self.metrics = state_dict.get("metrics", {})
        self.changes[:0] = state_dict.get("changes", [])

    def on_train_start(self, *_: Any) -> None:
        self._since_start = self._since_batch = time.monotonic()  # resumed inside an epoch, that has no start

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since_batch = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        self._since_batch = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, __: int) -> None:
        now = time.monotonic()
        self.spent["train_seconds"] += now - self._since_batch
        self.spent["images"] += len(batch[1]) * trainer.world_size
        self._since_batch, self._trained = now, True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.metrics = _finite(trainer.callback_metrics)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning sets fast_dev_run without declaring it
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._trained:
            self.metrics = _finite(trainer.callback_metrics)
        else:
            rank_zero_info(f"Nothing is left to train: the run has its {trainer.current_epoch} epochs")
        if self._trained or (self.metrics and not self.path.exists()):
            with replacing(self.path) as file:
                json.dump(self._row(trainer, module), file, indent=1, allow_nan=False)
                file.write("\n")

    def _seconds(self) -> float:
        return self.spent["seconds"] + (time.monotonic() - self._since_start if self._since_start else 0.0)

    def _row(self, trainer: pl.Trainer, module: pl.LightningModule) -> Row:
        best = self.best.best_model_score
        cuda = module.device.type == "cuda"
        return {
            "config": self.configs,
            "seed": self.seed,
            "epochs": trainer.current_epoch,
            "last_val_acc": self.metrics.get("val/acc"),
            "best_val_acc": None if best is None else float(best),
            "metrics": self.metrics,
            "seconds": round(self._seconds(), 2),
            "images_per_second": round(self.spent["images"] / max(self.spent["train_seconds"], 1e-9), 2),
            "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
            "devices": trainer.world_size,
            "precision": trainer.precision,
            "versions": {package.__name__: package.__version__ for package in (hsakd_pl, torch, torchvision, pl)},
            "commit": _commit(),
            "teacher_sha256": module.hparams.get("teacher_sha256"),
            "changes": self.changes,
        }


def _commit() -> str | None:
    """Of the repository that holds this file, with ``-dirty`` where files differ from it; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked, describe = ["ls-files", "--error-unmatch", Path(__file__).name], ["describe", "--always", "--dirty"]
    try:
        for arguments in (tracked, [*describe, "--abbrev=40", "--exclude=*"]):
            output = subprocess.run([*git, *arguments], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip()


def collect(folder: Path) -> list[Row]:
    """The rows of all runs below ``folder``, by folder; UsageError if there is none, or one that cannot be read."""
    rows = [_read_row(path) for path in sorted(folder.rglob(FILE))]
    if not rows:
        raise UsageError(f"no {FILE} below {folder}: 'fit' writes one when a run has ended")
    return rows


def _read_row(path: Path) -> Row:
    try:
        row = json.loads(read_text(path), parse_constant=_refuse)
        if not isinstance(row, dict) or not _list_of_names(row.get("config")):
            raise ValueError("config is no list of names")
        for field, most in FIELDS.items():
            value = row.get(field, "missing")
            if not (most == 1 and value is None) and not (type(value) in (int, float) and 0 <= value <= most):
                raise ValueError(f"{field} is {value!s:.40}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no result ({error}): remove it and run its experiment again") from error
    return {**row, "folder": str(path.parent)}


def _list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.encode() for name in value)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Give plain numbers by name, and None for NaN, which JSON lacks; the rate of the last step is no result."""
    numbers = {name: float(metrics[name]) for name in sorted(metrics) if not name.startswith("lr-")}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def as_table(rows: Iterable[Row]) -> Table:
    """A line a configuration: accuracies in percent as mean +- standard deviation over its runs."""
    by_config: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_config[" + ".join(Path(config).stem for config in row["config"]) or row["folder"]].append(row)
    table = Table("configuration", "runs", "last epoch", "best epoch", "images/s", "seconds")
    for name, runs in by_config.items():
        last, best = (_spread([row[key] for row in runs]) for key in ("last_val_acc", "best_val_acc"))
        speed, seconds = (f"{mean(row[key] for row in runs):,.0f}" for key in ("images_per_second", "seconds"))
        table.add_row(escape(name), str(len(runs)), last, best, speed, seconds)
    return table


def _spread(fractions: list[float | None]) -> str:
    percent = [100 * fraction for fraction in fractions if fraction is not None]
    deviation = f" +- {stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{mean(percent):.2f}{deviation}" if percent else "-"


def show(folder: Path) -> None:
    """Write ``rows.jsonl`` into ``folder``, a line a run, and print the table."""
    rows = collect(folder)
    with replacing(folder / "rows.jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    Console().print(as_table(rows))


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Show what is below a folder."""
    parser.add_argument("folder", type=Path, help="of one or more runs; rows.jsonl is written into it")
    show(parser.parse_args(args).folder)
