"""Measure a loop inside its process.

A phase is a generator that takes one training step at every ``yield``, whoever makes that step: :func:`drive` in a bare
loop, a callback inside ``Trainer.fit``. So all loops are measured by the same lines.
"""

import re
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import hsakd_pl
from benchmarks.machine import software

COUNTED_STEPS = 5  # in which host syncs are counted, after the warm-up


def drive(phase: Iterator[None], step: Callable[[], None]) -> None:
    """Take the steps that a phase asks for."""
    for _ in phase:
        step()


class Measurement:
    """Time, memory and host syncs of the loop of a process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def serve(self, connection: Connection, warmup: int) -> Iterator[None]:
        """Open the loop, then take the steps that come in as ``{"steps": ..., "profile": ...}``, until none come."""
        costs = yield from self.opening(warmup)
        connection.send(costs | environment())
        while order := receive(connection):
            if order["profile"]:
                with torch.profiler.profile() as profiler:
                    yield from self.block(order["steps"])
                key = "self_device_time_total" if self.cuda else "self_cpu_time_total"
                connection.send({"profile": profiler.key_averages().table(sort_by=key, row_limit=25)})
            else:
                step_ms = yield from self.block(order["steps"])
                connection.send({"step_ms": step_ms, "peak_memory_bytes": self.peak_memory()})

    def opening(self, warmup: int) -> Generator[None, None, dict[str, Any]]:
        """Take the first step and ``warmup`` more; returns the first's time and, on a GPU, the host syncs of others."""
        start = time.perf_counter()
        yield
        self._wait()
        costs: dict[str, Any] = {
            "first_step_seconds": time.perf_counter() - start,
            "host_syncs_per_step": None,
        }
        for _ in range(warmup):
            yield
        if self.cuda:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(COUNTED_STEPS):
                    yield
                torch.cuda.set_sync_debug_mode("default")
            syncs = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
            costs["host_syncs_per_step"] = len(syncs) / COUNTED_STEPS
        return costs

    def block(self, steps: int) -> Generator[None, None, list[float]]:
        """Time ``steps`` steps one by one; returns their milliseconds."""
        self._wait()
        stamps = [self._stamp()]
        for _ in range(steps):
            yield
            stamps.append(self._stamp())
        self._wait()
        return [start.elapsed_time(end) if self.cuda else 1000 * (end - start) for start, end in pairwise(stamps)]

    def peak_memory(self) -> int | None:
        """Return the most memory in bytes: allocated on the GPU, else resident in this process, None if unknown.

        ``getrusage`` is of no use here: in a new program, ``ru_maxrss`` starts at that of the process that started it.
        """
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
        return 1024 * int(peak[1]) if peak else None

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


def receive(connection: Connection) -> dict[str, Any] | None:
    """Return the next message, or None if the other side has closed the connection."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return None


def environment() -> dict[str, Any]:
    """Return what the speed of this process depends on, and the file of the package that it uses."""
    details = software()
    details["versions"]["torch"] = torch.__version__  # with the build, which the package's metadata lack
    return {"threads": torch.get_num_threads(), "package": hsakd_pl.__file__, **details}
