"""Prepare a process for PyTorch on a CPU. OpenMP reads its variables once, when PyTorch is imported."""

import ctypes
import os
import sys
import warnings

# Rounds in which a waiting OpenMP thread spins before it sleeps, about 30 microseconds. By default it spins for
# milliseconds: on a shared machine that makes a step ten times as slow. Not spinning at all costs a third of the speed
# on an otherwise idle machine.
SPIN_COUNT = "3000"
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # variables that decide it

# Parameters of mallopt(3)
MMAP_MAX = -4
MMAP_THRESHOLD = -3

# While tensors are mapped on their own, the number of them (glibc's own), and the least number of bytes of one
MOST_MAPPED = 65536
LEAST_MAPPED = 2**18

# Keep memory freed by one step for the next. Otherwise glibc maps every tensor above 32 MiB on its own and returns it
# to the system, and writing the next one causes a page fault every 4 KiB. (A higher MALLOC_MMAP_THRESHOLD_ does the
# same, but older versions of glibc ignore values above 32 MiB.) All threads share what is kept: by default, each thread
# that evaluates a part of a teacher's batch keeps its own.
ALLOCATOR = {  # parameter and value
    "MALLOC_MMAP_MAX_": (MMAP_MAX, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_ARENA_MAX": (-8, 1),
}
REPLACED_BY = {"MALLOC_MMAP_MAX_": ("MALLOC_MMAP_THRESHOLD_",)}  # variables of the same


def prepare_cpu() -> None:
    """Let PyTorch share the CPU with other programs, and keep freed memory for the next step.

    Notebooks and scripts call it before anything imports PyTorch; the program ``hsakd`` does so itself. It limits how
    long waiting OpenMP threads spin (``GOMP_SPINCOUNT``), lets glibc keep freed memory (``MALLOC_MMAP_MAX_``,
    ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_ARENA_MAX``), and sets PyTorch's number of threads to the CPUs that a
    container may use. Variables that are set already are kept, and processes that are started later inherit all of
    them. Once PyTorch has been imported, the first has no effect, and a warning says so.

    Examples:
        >>> from hsakd_pl import prepare_cpu
        >>> prepare_cpu()
        >>> import torch
    """
    is_late = "torch" in sys.modules and not _is_set(SPINNING)
    prepare_process()
    if is_late:
        warnings.warn(
            "prepare_cpu: PyTorch was imported before, so that its threads still spin for long: call prepare_cpu first",
            stacklevel=2,
        )
    from hsakd_pl.cpu.threads import share_cores  # imports PyTorch

    share_cores()


def prepare_process() -> None:
    """Set the variables of OpenMP and glibc that the user has not set, and glibc's limits in this process."""
    if not _is_set(SPINNING):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version") or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for variable, (parameter, value) in ALLOCATOR.items():
        if not _is_set((variable, *REPLACED_BY.get(variable, ()))):
            os.environ[variable] = str(value)  # read when a process starts
            ctypes.CDLL(None).mallopt(parameter, value)


def map_tensors() -> None:
    """Let glibc map large tensors on their own for now, if freed memory is kept (see :func:`prepare_cpu`).

    Tensors that stay, such as weights, would otherwise divide the memory that a step frees into parts that are too
    small for the next.
    """
    if _keeps_freed_memory():
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LEAST_MAPPED)
        ctypes.CDLL(None).mallopt(MMAP_MAX, MOST_MAPPED)


def reuse_memory() -> None:
    """Revert :func:`map_tensors`, and return to the system what is free now."""
    if _keeps_freed_memory():
        ctypes.CDLL(None).mallopt(MMAP_MAX, 0)
        ctypes.CDLL(None).malloc_trim(0)


def _keeps_freed_memory() -> bool:
    """Return whether :func:`prepare_process`, or the user, has set the variable by which glibc keeps freed memory."""
    return os.environ.get("MALLOC_MMAP_MAX_") == "0" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def _is_set(variables: tuple[str, ...]) -> bool:
    return any(variable in os.environ for variable in variables)
