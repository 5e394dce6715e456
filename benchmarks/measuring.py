"""Measure a loop, and let loops take turns, so that noise affects all alike.

A phase is a generator that takes one training step at every ``yield``, whoever makes that step: :func:`drive` in a bare
loop, a callback inside ``Trainer.fit``. So all loops are measured by the same lines, and one can run inside another.
"""

import platform
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import hsakd_pl

COUNTED_STEPS = 5  # in which host syncs are counted, after the warm-up


def drive(phase: Iterator[None], step: Callable[[], None]) -> None:
    """Take the steps that a phase asks for."""
    for _ in phase:
        step()


class Measurement:
    """Time, memory and host syncs of one loop whose steps take ``batch_size`` images; made before that loop is."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.batch_size = batch_size
        self.costs: dict[str, Any] = {"first_step_seconds": 0.0, "peak_memory_bytes": None, "host_syncs_per_step": None}
        self.step_ms: list[float] = []
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self.floor = torch.cuda.memory_allocated(device)

    def opening(self, warmup: int) -> Iterator[None]:
        """Take the first step and ``warmup`` more; find memory and syncs, where the device is a GPU."""
        start = time.perf_counter()
        yield
        self._wait()
        self.costs["first_step_seconds"] = time.perf_counter() - start
        for _ in range(warmup):
            yield
        if self.cuda:
            self.costs["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device) - self.floor
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(COUNTED_STEPS):
                    yield
                torch.cuda.set_sync_debug_mode("default")
            syncs = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
            self.costs["host_syncs_per_step"] = len(syncs) / COUNTED_STEPS

    def block(self, steps: int) -> Iterator[None]:
        """Time ``steps`` steps one by one."""
        self._wait()
        stamps = [self._stamp()]
        for _ in range(steps):
            yield
            stamps.append(self._stamp())
        self._wait()
        for start, end in pairwise(stamps):
            self.step_ms.append(start.elapsed_time(end) if self.cuda else 1000 * (end - start))

    def summary(self) -> dict[str, Any]:
        """Return the numbers for the JSON file."""
        median = statistics.median(self.step_ms)
        quartiles = statistics.quantiles([*self.step_ms, median], n=4, method="inclusive")
        return {
            "ms_per_step": median,
            "ms_quartiles": quartiles,
            "images_per_second": 1000 * self.batch_size / median,
            **self.costs,
            "step_ms": self.step_ms,
        }

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _stamp(self) -> Any:
        """Mark a point in the device's time, without waiting for it."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def environment(device: torch.device) -> dict[str, Any]:
    """Return device, versions, date and commit of a measurement."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model_name = re.search(r"model name\s*: (.*)", cpuinfo)
    processor = model_name[1] if model_name else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor}, {capability}",
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {package.__name__: package.__version__ for package in (hsakd_pl, pl, torch)},
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or None,
    }
