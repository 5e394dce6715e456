"""Write a JSON row for each run, and show many rows as a table."""

import json
import os
import subprocess
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

import hsakd_pl
from hsakd_pl.errors import UsageError

FILE = "result.json"
Row = dict[str, Any]


class ResultWriter(pl.Callback):
    """Writes ``result.json`` into ``folder`` when training has ended, whatever interruptions it went through.

    The row: config files, seed, epochs, last and best validation accuracy in [0, 1], all last metrics, seconds of the
    whole fit, training images/s of all devices, device, versions, commit, and what the teacher's weights were.
    """

    def __init__(self, folder: str | Path, configs: Iterable[str], seed: int, best: ModelCheckpoint) -> None:
        self.path, self.configs, self.seed, self.best = Path(folder, FILE), list(configs), seed, best
        self.spent = {"seconds": 0.0, "train_seconds": 0.0, "images": 0}
        self._since_start = self._since_batch = 0.0

    def state_dict(self) -> dict[str, float]:
        return {**self.spent, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.spent.update(state_dict)

    def on_train_start(self, *_: Any) -> None:
        self._since_start = time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since_batch = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        self._since_batch = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, __: int) -> None:
        now = time.monotonic()
        self.spent["train_seconds"] += now - self._since_batch
        self.spent["images"] += len(batch[1]) * trainer.world_size
        self._since_batch = now

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning sets fast_dev_run without declaring it
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self._row(trainer, module), indent=1) + "\n")
            partial.replace(self.path)

    def _seconds(self) -> float:
        return self.spent["seconds"] + (time.monotonic() - self._since_start if self._since_start else 0.0)

    def _row(self, trainer: pl.Trainer, module: pl.LightningModule) -> Row:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        best = self.best.best_model_score
        cuda = module.device.type == "cuda"
        return {
            "config": self.configs,
            "seed": self.seed,
            "epochs": trainer.current_epoch,
            "last_val_acc": metrics.get("val/acc"),
            "best_val_acc": None if best is None else float(best),
            "metrics": metrics,
            "seconds": round(self._seconds(), 2),
            "images_per_second": round(self.spent["images"] / max(self.spent["train_seconds"], 1e-9), 2),
            "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
            "devices": trainer.world_size,
            "precision": trainer.precision,
            "versions": {package.__name__: package.__version__ for package in (hsakd_pl, torch, torchvision, pl)},
            "commit": _commit(),
            "teacher_sha256": module.hparams.get("teacher_sha256"),
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
        return {"folder": str(path.parent), **json.loads(path.read_text())}
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no result ({error}): remove it and run its experiment again") from error


def as_table(rows: Iterable[Row]) -> Table:
    """A line a configuration: accuracies in percent as mean +- standard deviation over its runs."""
    by_config: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_config[" + ".join(Path(config).stem for config in row["config"]) or row["folder"]].append(row)
    table = Table("configuration", "runs", "last epoch", "best epoch", "images/s", "seconds")
    for name, runs in by_config.items():
        last, best = (_spread([row[key] for row in runs]) for key in ("last_val_acc", "best_val_acc"))
        speed, seconds = (f"{mean(row[key] for row in runs):,.0f}" for key in ("images_per_second", "seconds"))
        table.add_row(name, str(len(runs)), last, best, speed, seconds)
    return table


def _spread(fractions: list[float | None]) -> str:
    percent = [100 * fraction for fraction in fractions if fraction is not None]
    deviation = f" +- {stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{mean(percent):.2f}{deviation}" if percent else "-"


def show(folder: Path) -> None:
    """Write ``rows.jsonl`` into ``folder``, a line a run, and print the table."""
    rows = collect(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Console().print(as_table(rows))


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Show what is below a folder."""
    parser.add_argument("folder", type=Path, help="of one or more runs; rows.jsonl is written into it")
    show(parser.parse_args(args).folder)
