"""``kernel.c``, compiled for the machine at hand: in under a second, so every process does it anew."""

import ctypes
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_lightning.utilities import rank_zero_info

SOURCE = Path(__file__).with_name("kernel.c")
CAPABILITIES = ("AVX2", "AVX512")  # as PyTorch names what the kernel is written for
POINTER, LONG = ctypes.c_void_p, ctypes.c_long


@lru_cache
def library() -> ctypes.CDLL | None:
    """The functions of the kernel; None, and the reason in the log, where they cannot be had.

    They run in the OpenMP threads that PyTorch has loaded: its library is not linked a second time.
    """
    if torch.backends.cpu.get_cpu_capability() not in CAPABILITIES:
        return None
    compiler = os.environ.get("CC") or "cc"
    with TemporaryDirectory() as folder:
        binary, objects = f"{folder}/kernel.so", f"{folder}/kernel.o"
        try:
            for arguments in (
                ["-O3", "-march=native", "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", objects],
                ["-shared", objects, "-o", binary],
            ):
                subprocess.run([*compiler.split(), *arguments], check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(binary)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
            rank_zero_info(f"Convolutions stay PyTorch's, at half the speed: the C kernel cannot be built ({reason})")
            return None
    loaded.winograd_convolve.argtypes = [POINTER] * 4 + [LONG] * 5
    loaded.winograd_filter_gradients.argtypes = [POINTER] * 3 + [LONG] * 6
    return loaded
