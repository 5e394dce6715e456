"""Train a teacher, a student alone, and the same student distilled: ``python -m hsakd_pl.quickstart``.

Data: scikit-learn's handwritten digits, which need no download. The students see 50 labels, so that the gain from the
teacher is visible.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from hsakd_pl.cpu.start import prepare_process

if TYPE_CHECKING:
    from hsakd_pl.data import DigitsDataModule
    from hsakd_pl.modules import HSAKDModule

FEW = 0.04  # of the 1,257 training images
LINE = "{:22} {:>18} {:>12} {:>12} {:>6}"


class Accuracies(NamedTuple):
    """Hold accuracies on the 540 test images after the last epoch, in [0, 1]."""

    teacher: float
    alone: float
    distilled: float


def quickstart(seed: int = 0, teacher_epochs: int = 6, student_epochs: int = 40) -> Accuracies:
    """Train a teacher, a student alone, and the same student distilled on digits, and print their accuracies.

    The teacher, a resnet20 with branches, learns from all 1,257 training images; the students, two resnet8, from 50 of
    them. This takes one to two minutes on two cores; a terminal and a notebook show a bar. Nothing is written to the
    disk.

    Args:
        seed: seed of weights, batches and augmentation.
        teacher_epochs: number of epochs of the teacher.
        student_epochs: number of epochs of each student.

    Returns:
        Accuracies of the three networks on the 540 test images, in [0, 1].

    Examples:
        >>> import hsakd_pl
        >>> accuracies = hsakd_pl.quickstart()  # doctest: +SKIP
        network                        trained on   parameters     accuracy      s
        teacher resnet20             1,257 images      272,474       99.1 %     37
        student alone, resnet8          50 images       78,042       84.1 %      3
        student distilled               50 images       78,042       91.9 %     11
    """
    prepare_process()  # before PyTorch is imported

    from pytorch_lightning import seed_everything
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import CosineAnnealingLR

    from hsakd_pl.cpu.threads import share_cores
    from hsakd_pl.data import DigitsDataModule
    from hsakd_pl.modules import BaselineModule, StudentModule, TeacherModule

    share_cores()

    def options(epochs: int) -> dict[str, Any]:
        seed_everything(seed, verbose=False)
        schedule = partial(CosineAnnealingLR, T_max=epochs)
        optimizer = partial(AdamW, lr=0.003)
        return {"num_classes": 10, "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}

    print(LINE.format("network", "trained on", "parameters", "accuracy", "s"), flush=True)
    with _silence():
        teacher = TeacherModule("resnet20", **options(teacher_epochs))
        teacher_accuracy = _train("teacher resnet20", teacher, DigitsDataModule(), teacher_epochs)
        few = DigitsDataModule(train_fraction=FEW, batch_size=8)
        alone = BaselineModule("resnet8", **options(student_epochs))
        alone_accuracy = _train("student alone, resnet8", alone, few, student_epochs)
        student = StudentModule("resnet8", teacher.network, **options(student_epochs))
        return Accuracies(teacher_accuracy, alone_accuracy, _train("student distilled", student, few, student_epochs))


def _train(name: str, module: "HSAKDModule", data: "DigitsDataModule", epochs: int) -> float:
    """Train a module, print its line, and return its accuracy on the test images."""
    import pytorch_lightning as pl

    from hsakd_pl.records.progress import Progress

    start = time.perf_counter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        logger=False,
        enable_checkpointing=False,
        callbacks=[Progress(lines=False)],
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    accuracy = float(trainer.callback_metrics["val/acc"])
    images = f"{len(data.splits['train'].targets):,} images"
    parameters = sum(parameter.numel() for parameter in module.network.without_branches.parameters())
    print(LINE.format(name, images, f"{parameters:,}", f"{100 * accuracy:.1f} %", f"{seconds:.0f}"), flush=True)
    return accuracy


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress Lightning's messages and warnings, which are about the trainer and not about the results."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        try:
            yield
        finally:
            logger.setLevel(level)


class _Callable(ModuleType):
    """A module that can be called like its function, since ``hsakd_pl.quickstart`` names both."""

    def __call__(self, *arguments: int, **options: int) -> Accuracies:
        return quickstart(*arguments, **options)


sys.modules[__name__].__class__ = _Callable


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "python -m hsakd_pl.quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--student-epochs", type=int, default=40)
    options = parser.parse_args()
    quickstart(options.seed, options.teacher_epochs, options.student_epochs)


if __name__ == "__main__":
    main()
