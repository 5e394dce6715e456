"""Whether a long fit stays as fast and as small as its first epochs, and what the trainer adds to a bare loop."""

import statistics
from typing import Any

import pytorch_lightning as pl

from benchmarks.cases import Case
from benchmarks.loops import BareLoop, fit
from benchmarks.measurement import Measurement, drive
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from hsakd_pl.errors import UsageError

# Steps after which the two loops change places, so that both see a machine's drift: a GPU's queue empties each time.
TURN = {"cpu": 1, "cuda": 10}


class Epochs(pl.Callback):
    """Seconds of each epoch's training part, and memory after it; the bare loop has turns of ``turn`` steps."""

    def __init__(self, meter: Meter, bare: Measurement, loop: BareLoop, turn: int) -> None:
        self.meter, self.bare, self.loop, self.turn = meter, bare, loop, turn
        self.seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.memory: list[int | None] = []
        self.milliseconds = 0.0
        self.start: Any = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.milliseconds, self.bare.step_ms = 0.0, []
        self.start = self.meter.stamp()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.turn == 0:
            self._stop()
            drive(self.bare.block(self.turn), self.loop.step)
            self.start = self.meter.stamp()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()
        self.seconds.append(self.milliseconds / 1000)
        self.bare_seconds.append(sum(self.bare.step_ms) / 1000)
        self.memory.append(self.meter.memory())

    def _stop(self) -> None:
        self.milliseconds += sum(self.meter.milliseconds([self.start, self.meter.stamp()]))


def spread_percent(values: list[float]) -> float:
    """From the lowest to the highest, of their median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def growth(case: Case, settings: Settings, epochs: int) -> dict[str, Any]:
    """Fit ``epochs`` epochs of ``settings.steps`` batches; the first is left out of everything but the lists.

    Raises UsageError with fewer than three epochs, or where the loops cannot take turns evenly.
    """
    if epochs < 3:
        raise UsageError(f"--epochs {epochs}: the first is left out and growth needs two more, so at least 3")
    meter = Meter(settings.torch_device)
    turn = TURN[settings.device]
    if settings.steps % turn:
        raise UsageError(f"--steps {settings.steps}: with --epochs, choose a multiple of {turn}")
    bare = Measurement(meter, settings.batch_size)
    loop = BareLoop(case, settings.data_module(), settings)
    drive(bare.opening(settings.warmup), loop.step)
    seen = Epochs(meter, bare, loop, turn)
    fit(case, settings, seen, max_epochs=epochs, limit_train_batches=settings.steps)
    second, last = seen.memory[1], seen.memory[-1]
    over_bare = [ours / bare for ours, bare in zip(seen.seconds[1:], seen.bare_seconds[1:], strict=True)]
    return {
        "batches_per_epoch": settings.steps,
        "epoch_seconds": seen.seconds,
        "bare_seconds": seen.bare_seconds,
        "spread_percent": spread_percent(seen.seconds[1:]),
        "spread_over_bare_percent": spread_percent(over_bare),
        "memory_bytes": seen.memory,
        "memory_growth_bytes": None if second is None or last is None else last - second,
        "fit_overhead_percent": 100 * (statistics.median(over_bare) - 1),
    }
