"""Whether a long fit stays as fast and as small as its first epochs, and what the trainer adds to a bare loop."""

import statistics
import time
from typing import Any

import pytorch_lightning as pl

from benchmarks.cases import Case
from benchmarks.loops import BareLoop, fit
from benchmarks.measurement import Measurement, drive
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from hsakd_pl.errors import UsageError


class Epochs(pl.Callback):
    """Seconds of each epoch's training part, and memory after it; the bare loop runs a block between epochs."""

    def __init__(self, meter: Meter, bare: Measurement, loop: BareLoop, steps: int) -> None:
        self.meter, self.bare, self.loop, self.steps = meter, bare, loop, steps
        self.seconds: list[float] = []
        self.memory: list[int | None] = []
        self.start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        drive(self.bare.block(self.steps), self.loop.step)
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.meter.synchronize()
        self.seconds.append(time.perf_counter() - self.start)
        self.memory.append(self.meter.memory())


def growth(case: Case, settings: Settings, epochs: int) -> dict[str, Any]:
    """Fit ``epochs`` epochs of ``settings.steps`` batches; the first is left out of everything but the list.

    Raises UsageError with fewer than three epochs.
    """
    if epochs < 3:
        raise UsageError(f"--epochs {epochs}: the first is left out and growth needs two more, so at least 3")
    meter = Meter(settings.torch_device)
    bare = Measurement(meter, settings.batch_size)
    loop = BareLoop(case, settings.data_module(), settings)
    drive(bare.opening(settings.warmup), loop.step)
    seen = Epochs(meter, bare, loop, settings.steps)
    fit(case, settings, seen, max_epochs=epochs, limit_train_batches=settings.steps)
    steady, (second, last) = seen.seconds[1:], (seen.memory[1], seen.memory[-1])
    median = statistics.median(steady)
    step_ms = statistics.median(bare.step_ms[settings.steps :])
    return {
        "batches_per_epoch": settings.steps,
        "epoch_seconds": seen.seconds,
        "spread_percent": 100 * (max(steady) - min(steady)) / median,
        "memory_bytes": seen.memory,
        "memory_growth_bytes": None if second is None or last is None else last - second,
        "step_ms": step_ms,
        "fit_overhead_percent": 100 * (1000 * median / settings.steps / step_ms - 1),
    }
