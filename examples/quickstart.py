"""Train a joint teacher, a student alone and the same student distilled, in a few minutes on a CPU.

Data: scikit-learn's handwritten digits. The students see only 50 labels, so that the gain from the teacher is visible.
"""

# ruff: noqa: E402  (imports follow the call that prepares the process for PyTorch)

import hsakd_pl

hsakd_pl.prepare_cpu()

import argparse
import logging
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import BaselineModule, DigitsDataModule, HSAKDModule, StudentModule, TeacherModule
from hsakd_pl.records.progress import Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FEW = 0.04  # 50 of the 1,257 training images


class Run(NamedTuple):
    """Results of one training: accuracy in percent after each epoch, parameters of the backbone, seconds."""

    name: str
    accuracy: list[float]
    parameters: int
    seconds: float


class AccuracyCurve(pl.Callback):
    """Record the test accuracy in percent after each epoch."""

    def __init__(self) -> None:
        self.percent: list[float] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.percent.append(100 * float(trainer.callback_metrics["val/acc"]))


def train(name: str, module: HSAKDModule, data: DigitsDataModule, epochs: int) -> Run:
    """Train a module and evaluate it after each epoch."""
    Console().rule(f"{name}, {epochs} epochs")
    curve = AccuracyCurve()
    start = time.perf_counter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[curve, Progress()],
    )
    trainer.fit(module, datamodule=data)
    parameters = sum(parameter.numel() for parameter in module.network.without_branches.parameters())
    return Run(name, curve.percent, parameters, time.perf_counter() - start)


def report(runs: list[Run], picture: Path) -> None:
    """Print a table and save a plot of the curves."""
    table = Table(title="Handwritten digits, 540 test images")
    for column in ("network", "accuracy after the last epoch", "parameters", "seconds"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for run in runs:
        table.add_row(run.name, f"{run.accuracy[-1]:.1f} %", f"{run.parameters:,}", f"{run.seconds:.0f}")
        plt.plot(range(1, len(run.accuracy) + 1), run.accuracy, label=run.name)
    plt.xlabel("epoch")
    plt.ylabel("test accuracy (%)")
    plt.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(picture, dpi=150)
    Console(width=100).print(table)
    print(f"curves: {picture}")


def main() -> None:
    """Train teacher and students and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--student-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the plot")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")

    def recipe(epochs: int) -> dict[str, Any]:
        pl.seed_everything(options.seed)
        schedule = partial(CosineAnnealingLR, T_max=epochs)
        optimizer = partial(AdamW, lr=0.003)
        return {"num_classes": 10, "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}

    teacher = TeacherModule("resnet20", **recipe(options.teacher_epochs))
    runs = [train("teacher resnet20, all labels", teacher, DigitsDataModule(), options.teacher_epochs)]
    few = DigitsDataModule(train_fraction=FEW, batch_size=8)
    alone = BaselineModule("resnet8", **recipe(options.student_epochs))
    runs.append(train("student resnet8 alone, 50 labels", alone, few, options.student_epochs))
    distilled = StudentModule("resnet8", teacher.network, **recipe(options.student_epochs))
    runs.append(train("student resnet8 distilled, 50 labels", distilled, few, options.student_epochs))
    report(runs, options.out / "curves.png")


if __name__ == "__main__":
    main()
