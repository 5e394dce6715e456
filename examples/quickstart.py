"""The main job in a few minutes on a CPU: a joint teacher, a student alone, and the same student distilled.

Data: scikit-learn's handwritten digits. The students see 50 labels, so that what the teacher adds can show.
"""

import argparse
import logging
import time
from pathlib import Path

import matplotlib
import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

from hsakd_pl import BaselineModule, DigitsDataModule, HSAKDModule, StudentModule, TeacherModule

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend that needs no display)


class AccuracyCurve(pl.Callback):
    """Collects the accuracy, in percent, after each epoch."""

    def __init__(self) -> None:
        self.percent: list[float] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.percent.append(100 * float(trainer.callback_metrics["val/acc"]))


def train(name: str, module: HSAKDModule, data: DigitsDataModule, epochs: int) -> tuple[list[float], list[str]]:
    """Fit a module; returns its accuracy after each epoch and its row of the table."""
    Console().rule(f"{name}: {epochs} epochs")
    curve, start = AccuracyCurve(), time.perf_counter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[curve, RichProgressBar(leave=False)],
    )
    trainer.fit(module, datamodule=data)
    backbone = getattr(module.network, "backbone", module.network)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    seconds = time.perf_counter() - start
    return curve.percent, [name, f"{curve.percent[-1]:.1f} %", f"{parameters:,}", f"{seconds:.0f}"]


def main() -> None:
    """Train the three, print the table, save the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--student-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    common = {"num_classes": 10, "branch_metrics_every": 0}

    pl.seed_everything(options.seed)
    teacher = TeacherModule("resnet20", milestones=[options.teacher_epochs * 3 // 4], **common)
    runs = [train("teacher resnet20, all labels", teacher, DigitsDataModule(), options.teacher_epochs)]
    for name in ("student resnet8 alone, 50 labels", "student resnet8 distilled, 50 labels"):
        pl.seed_everything(options.seed)
        milestones = [options.student_epochs * 3 // 4]
        if "alone" in name:
            student: HSAKDModule = BaselineModule("resnet8", milestones=milestones, **common)
        else:
            student = StudentModule("resnet8", teacher.network, milestones=milestones, **common)
        few = DigitsDataModule(train_fraction=0.04, batch_size=16)
        runs.append(train(name, student, few, options.student_epochs))

    table = Table("network", "test accuracy, last epoch", "parameters", "seconds", title="Handwritten digits")
    for curve, row in runs:
        table.add_row(*row)
        plt.plot(range(1, len(curve) + 1), curve, label=row[0])
    plt.xlabel("epoch")
    plt.ylabel("test accuracy (%)")
    plt.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    plt.savefig(options.out / "curves.png", dpi=150)
    Console().print(table)
    print(f"curves: {options.out / 'curves.png'}")


if __name__ == "__main__":
    main()
