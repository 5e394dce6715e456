"""Whether memory that training on a CPU frees goes back to the system, as far as glibc lets one choose."""

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MOST = 2**31 - 1  # bytes; the C int that mallopt takes
MIB = 2**20


def keep_freed_memory(device: torch.device, keep: bool) -> None:
    """Keep it for the next step, which asks for as much again, or return it as glibc does by itself.

    A tensor above 32 MiB is otherwise a mapping of its own: gone when it is freed, and one page fault for every 4 KiB
    when the next is written. Where ``device`` is no CPU or the C library is another, nothing changes.
    """
    if device.type != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, MOST if keep else 32 * MIB)  # what glibc's own adaptation ends with on 64 bits
    mallopt(M_TRIM_THRESHOLD, MOST if keep else 64 * MIB)
