"""Let PyTorch's threads follow the CPUs that a process may use."""

import os

import torch

from hsakd_pl.cpu.cores import affinity, available_cores

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which users choose the number; torchrun sets the first


def share_cores(processes: int = 1) -> None:
    """Lower PyTorch's number of threads to the CPUs of this process, divided among ``processes`` if it starts others.

    A number that the user chose by a variable is kept. Processes that are started later inherit the number if there
    are several.
    """
    if any(variable in os.environ for variable in VARIABLES):
        return
    threads = min(torch.get_num_threads(), max(1, available_cores() // processes))
    torch.set_num_threads(threads)
    if processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Lightning would count the CPUs without the quota


def describe_threads() -> str:
    """Return PyTorch's number of threads, and why it is that one unless it is the number of CPUs."""
    threads = torch.get_num_threads()
    count = f"{threads} threads" if threads > 1 else "1 thread"
    chosen_by = [variable for variable in VARIABLES if variable in os.environ]
    if chosen_by:
        return f"{count} ({chosen_by[0]})"
    return f"{count} (CPU quota)" if available_cores() < affinity() else count
