"""Measure a step of each method that reads kept answers of its teacher, relative to a step of the student alone.

All fits of a pair take turns in one process. Each of them has a new module with the constants of the bench, and trains
on the same few batches of noise in the size of CIFAR-100. The first fit of KD keeps the teacher's answers, which the
others read; one of KD that asks the teacher takes turns with them.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import hsakd_pl
from benchmarks.cases import LR, Case, comparison_methods
from benchmarks.entries import Entry, entries
from benchmarks.loops import SyntheticDataModule
from benchmarks.machine import processor
from benchmarks.turns import costs, in_turns
from benchmarks.variants import PRECISIONS
from hsakd_pl import BaselineModule, HSAKDModule, create_network
from hsakd_pl.errors import UsageError

PAIRS = ("wrn_40_2-wrn_16_2", "resnet32x4-shufflenetv2", "resnet50-mobilenetv2")
ALONE = "alone"
ASKING = "KD, asking the teacher"


class Steps(pl.Callback):
    """Record when each step of a fit ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Return the duration of each step but the first."""
        return [1000 * (end - start) for start, end in zip(self.ends, self.ends[1:], strict=False)]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks answers", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("pairs", nargs="*", default=PAIRS, metavar="TEACHER-STUDENT")
    options.add_argument("--precision", choices=PRECISIONS, default="fp32")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--steps", type=int, default=4, help="timed steps of a fit, after the first")
    options.add_argument("--rounds", type=int, default=6)
    return options


def readers(pair: tuple[str, ...]) -> list[Entry]:
    """Return the methods that need no more of a teacher than its logits, with the constants of the pair, KD first."""
    cases = [Case(method, pair) for method, (_, form) in comparison_methods().items() if form.count("<") == 2]
    reads = [case for case in cases if attrgetter(case.class_name)(hsakd_pl).needs_only_logits]
    return entries(reads)


def fits_of(pair: tuple[str, ...], folder: Path) -> dict[str, Callable[[], HSAKDModule]]:
    """Return what makes the module of each fit, the student alone and the asking KD first."""
    weights = folder / "teacher.pth"
    torch.save(create_network(pair[0], num_classes=SyntheticDataModule.num_classes).state_dict(), weights)

    def make(entry: Entry, **answers: Any) -> HSAKDModule:
        arguments = entry.arguments | {"teacher_weights": str(weights), "num_classes": SyntheticDataModule.num_classes}
        return attrgetter(entry.class_name)(hsakd_pl)(**arguments, **answers)

    kd, *others = readers(pair)
    fits: dict[str, Callable[[], HSAKDModule]] = {
        ALONE: lambda: BaselineModule(pair[1], num_classes=SyntheticDataModule.num_classes, lr=LR),
        ASKING: partial(make, kd),
    }
    for entry in (kd, *others):
        fits[entry.name] = partial(make, entry, teacher_answers=str(folder / "answers"))
    return fits


def fit(module: HSAKDModule, options: argparse.Namespace) -> list[float]:
    """Train for one short epoch; returns the milliseconds of its steps."""
    steps = Steps()
    data = SyntheticDataModule((1 + options.steps) * options.batch_size, options.batch_size)
    precision: Any = PRECISIONS[options.precision]
    trainer = pl.Trainer(
        max_epochs=1,
        limit_val_batches=0,
        accelerator="cpu",
        precision=precision,
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pl.seed_everything(0, verbose=False)
    trainer.fit(module, data)
    return steps.milliseconds()


def measure(pair: tuple[str, ...], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the cost of a step of each fit of a pair, relative to the student alone."""
    with tempfile.TemporaryDirectory(prefix="answers-") as folder:
        fits = fits_of(pair, Path(folder))
        fit(fits["KD"](), options)  # keeps the answers
        blocks: dict[str, list[list[float]]] = {name: [] for name in fits}
        in_turns(options.rounds, list(fits), lambda name: blocks[name].append(fit(fits[name](), options)))
    return {name: costs(measured, blocks[ALONE]) for name, measured in blocks.items()}


def table(pair: str, measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a table, and of what asking once saves of all methods together."""
    lines = [f"| {pair} | step | relative to alone | quartiles |", "|---|---|---|---|"]
    for name, numbers in measured.items():
        low, _, high = numbers["relative_quartiles"]
        cells = [name, f"{numbers['ms_per_step']:.0f} ms", f"{numbers['relative']:.2f}", f"{low:.2f} to {high:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    asking = measured[ASKING]["relative"]
    reading = [numbers["relative"] for name, numbers in measured.items() if name not in (ALONE, ASKING)]
    saved = len(reading) * asking / (asking + sum(reading) - statistics.median(reading))
    return [*lines, "", f"{len(reading)} methods, of which one asks: {saved:.2f} times as fast as if all asked", ""]


def main(arguments: Sequence[str]) -> None:
    """Measure each pair, and print its table."""
    options = parser().parse_args(arguments)
    if min(options.batch_size, options.steps, options.rounds) < 1:
        raise UsageError("--batch-size, --steps and --rounds must be at least 1")
    warnings.filterwarnings("ignore")  # the trainer's advice about loaders
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for pair in options.pairs:
        networks = tuple(pair.split("-"))
        if len(networks) != 2:
            raise UsageError(f"pair {pair!r}: write it as TEACHER-STUDENT")
        print(*table(pair, measure(networks, options)), sep="\n", flush=True)
    print(f"processor: {processor()}", f"threads: {torch.get_num_threads()}", f"torch: {torch.__version__}", sep="\n")
