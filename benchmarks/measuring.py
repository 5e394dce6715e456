"""What is measured of a loop, and how loops take turns so that noise hits all alike.

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
    """Make the steps that a phase asks for."""
    for _ in phase:
        step()


class Measurement:
    """Time, memory and host syncs of one loop whose steps take ``batch_size`` images; made before that loop is."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device, self.cuda, self.batch_size = device, device.type == "cuda", batch_size
        self.found: dict[str, Any] = {"first_step_seconds": 0.0, "peak_memory_bytes": None, "host_syncs_per_step": None}
        self.step_ms: list[float] = []
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self.floor = torch.cuda.memory_allocated(device)

    def opening(self, warmup: int) -> Iterator[None]:
        """Take the first step and ``warmup`` more; find memory and syncs, where the device is a GPU."""
        start = time.perf_counter()
        yield
        self._wait()
        self.found["first_step_seconds"] = time.perf_counter() - start
        for _ in range(warmup):
            yield
        if self.cuda:
            self.found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device) - self.floor
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(COUNTED_STEPS):
                    yield
                torch.cuda.set_sync_debug_mode("default")
            syncs = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
            self.found["host_syncs_per_step"] = len(syncs) / COUNTED_STEPS

    def block(self, steps: int) -> Iterator[None]:
        """Time ``steps`` steps one by one."""
        self._wait()
        stamps = [self._stamp()]
        for _ in range(steps):
            yield
            stamps.append(self._stamp())
        self._wait()
        pairs = pairwise(stamps)
        self.step_ms += [a.elapsed_time(b) if self.cuda else 1000 * (b - a) for a, b in pairs]

    def summary(self) -> dict[str, Any]:
        """Give the numbers as the JSON file has them."""
        median = statistics.median(self.step_ms)
        quartiles = statistics.quantiles([*self.step_ms, median], n=4, method="inclusive")
        speed = {"ms_per_step": median, "ms_quartiles": quartiles, "images_per_second": 1000 * self.batch_size / median}
        return {**speed, **self.found, "step_ms": self.step_ms}

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _stamp(self) -> Any:
        """Mark a point in the device's time; taking it makes nobody wait."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def environment(device: torch.device) -> dict[str, Any]:
    """Say where and with what a measurement is made."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", cpuinfo)
    processor = f"{found[1] if found else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {package.__name__: package.__version__ for package in (hsakd_pl, pl, torch)},
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or None,
    }
