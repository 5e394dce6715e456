"""Load the C files next to this one, compiled for this machine."""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.files import compiled

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.c", "norms.c"))
HEADER = Path(__file__).with_name("vectors.h")
CAPABILITIES = ("AVX2", "AVX512")  # instruction sets that the kernels are written for, by PyTorch's names
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC")

POINTER = ctypes.c_void_p
LONG = ctypes.c_long
ARGUMENTS = {  # types of each function's arguments
    "winograd_convolve": [POINTER] * 4 + [LONG] * 5,
    "winograd_filter_gradients": [POINTER] * 3 + [LONG] * 6,
    "norm_relu": [POINTER] * 7 + [LONG] * 2 + [ctypes.c_double] + [ctypes.c_int] * 3,
    "norm_relu_gradients": [POINTER] * 11 + [LONG] * 2 + [ctypes.c_double] + [ctypes.c_int] * 3,
}


@lru_cache
def library() -> ctypes.CDLL | None:
    """Load the functions of the kernels; log the reason and return None if that is impossible.

    They run in PyTorch's OpenMP threads: OpenMP is not linked a second time.
    """
    if torch.backends.cpu.get_cpu_capability() not in CAPABILITIES:
        return None
    try:
        loaded = compiled.load(compiled.Code("kernels", SOURCES, FLAGS, headers=[HEADER]))
    except compiled.FAILURES as error:
        rank_zero_info(
            "Using PyTorch's convolutions and norms, at half the speed: the C kernels cannot be compiled "
            f"({compiled.reason_of(error)})"
        )
        return None
    for name, arguments in ARGUMENTS.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


def why_missing() -> str:
    """Return why :func:`library` returns None."""
    if torch.backends.cpu.get_cpu_capability() not in CAPABILITIES:
        return "the C kernels need AVX2 or AVX-512"
    return "the C kernels cannot be compiled"
