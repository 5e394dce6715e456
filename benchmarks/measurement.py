"""What is measured of a loop.

A phase is a generator that takes one training step at every ``yield``, whoever makes that step: :func:`drive` in a bare
loop, a callback inside ``Trainer.fit``. So all loops are measured by the same lines, and one can run inside another.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.meter import Meter

COUNTED_STEPS = 5  # in which host syncs are counted, after the warm-up


def drive(phase: Iterator[None], step: Callable[[], None]) -> None:
    """Make the steps that a phase asks for."""
    for _ in phase:
        step()


class Measurement:
    """Of one loop, whose steps take ``batch_size`` images."""

    def __init__(self, meter: Meter, batch_size: int) -> None:
        self.meter, self.batch_size = meter, batch_size
        self.first_step_seconds = 0.0
        self.peak_memory: int | None = None
        self.host_syncs: float | None = None
        self.step_ms: list[float] = []

    def opening(self, warmup: int) -> Iterator[None]:
        """The first step and ``warmup`` more, memory and syncs; ``meter.restart_peak`` is called before all that."""
        start = time.perf_counter()
        yield
        self.meter.synchronize()
        self.first_step_seconds = time.perf_counter() - start
        for _ in range(warmup):
            yield
        self.peak_memory = self.meter.peak()
        if self.meter.cuda:
            with self.meter.syncs() as syncs:
                for _ in range(COUNTED_STEPS):
                    yield
            self.host_syncs = len(syncs) / COUNTED_STEPS

    def block(self, steps: int) -> Iterator[None]:
        """Time ``steps`` steps one by one."""
        self.meter.synchronize()
        stamps = [self.meter.stamp()]
        for _ in range(steps):
            yield
            stamps.append(self.meter.stamp())
        self.step_ms += self.meter.milliseconds(stamps)

    @property
    def median_ms(self) -> float:
        """Of a step."""
        return statistics.median(self.step_ms)

    def summary(self) -> dict[str, Any]:
        """The numbers as the JSON file has them."""
        quartiles = statistics.quantiles(self.step_ms, n=4, method="inclusive") if len(self.step_ms) > 1 else None
        return {
            "ms_per_step": self.median_ms,
            "ms_quartiles": quartiles,
            "images_per_second": 1000 * self.batch_size / self.median_ms,
            "peak_memory_bytes": self.peak_memory,
            "host_syncs_per_step": self.host_syncs,
            "first_step_seconds": self.first_step_seconds,
            "step_ms": self.step_ms,
        }
