"""Time, memory and host syncs on one device, CUDA or CPU."""

import ctypes
import gc
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PROCESS = Path("/proc/self")  # Linux; elsewhere memory on a CPU is unknown
RESET_PEAK = "5"  # what clear_refs takes to forget the peak: proc(5)


class Meter:
    """What a device can tell about the work on it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self._floor: int | None = None

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def stamp(self) -> Any:
        """A point in the device's time; taking it makes nobody wait."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, stamps: list[Any]) -> list[float]:
        """Between each two neighbours."""
        self.synchronize()
        neighbours = list(pairwise(stamps))
        if self.cuda:
            return [start.elapsed_time(end) for start, end in neighbours]
        return [1000 * (end - start) for start, end in neighbours]

    def memory(self) -> int | None:
        """Bytes in use now, None where the system does not tell: by tensors on a GPU, by the process on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.cuda else _process_bytes("VmRSS")

    def restart_peak(self) -> None:
        """Let :meth:`peak` count from what is in use now."""
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        restarted = self.cuda or _forget_process_peak()
        self._floor = self.memory() if restarted else None

    def peak(self) -> int | None:
        """Bytes by which use has grown at most since :meth:`restart_peak`; None where the system does not tell."""
        highest = torch.cuda.max_memory_allocated(self.device) if self.cuda else _process_bytes("VmHWM")
        return None if highest is None or self._floor is None else highest - self._floor

    @contextmanager
    def syncs(self) -> Iterator[list[str]]:
        """Collects an entry for every time PyTorch makes the host wait for a GPU (``.item()``, a copy to the host)."""
        found: list[str] = []
        if not self.cuda:
            yield found
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        messages = [str(warning.message) for warning in caught]
        found += [message for message in messages if "synchronizing CUDA operation" in message]


def _process_bytes(field: str) -> int | None:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _forget_process_peak() -> bool:
    """Whether it could be done. Freed memory leaves the process first, else the next loop would reuse it unseen."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
    except (OSError, AttributeError):
        return False
    return True
