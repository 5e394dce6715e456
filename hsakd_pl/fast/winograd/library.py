"""``kernel.c``, compiled once for the machine at hand and kept in the user's cache."""

import ctypes
import hashlib
import os
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.files import cache_folder

SOURCE = Path(__file__).with_name("kernel.c")
CAPABILITIES = ("AVX2", "AVX512")  # as PyTorch names what the kernel is written for
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
CPUINFO = Path("/proc/cpuinfo")  # part of what a build depends on: machines may share a cache
PATIENCE = 60  # seconds, for a compiler that takes one


@lru_cache
def library() -> ctypes.CDLL | None:
    """Load the functions of the kernel; None, and the reason in the log, where they cannot be had.

    They run in the OpenMP threads that PyTorch has loaded: its library is not linked a second time.
    """
    if torch.backends.cpu.get_cpu_capability() not in CAPABILITIES:
        return None
    try:
        try:
            loaded = _load(cache_folder())
        except OSError as error:  # read-only, full or somebody else's
            with TemporaryDirectory() as private:
                loaded = _load(Path(private))
            rank_zero_info(f"The C kernel was built for this process alone: {error}")
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        rank_zero_info(f"Convolutions stay PyTorch's, at half the speed: the C kernel cannot be built ({reason})")
        return None
    loaded.winograd_convolve.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 5
    loaded.winograd_filter_gradients.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 6
    return loaded


def _load(folder: Path) -> ctypes.CDLL:
    """Load the library for this source, compiler and processor from ``folder``, built where it is not there or cut."""
    compiler = (os.environ.get("CC") or "cc").split()
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    processor = sorted(set(re.findall(r"^(?:model name|flags|Features).*", cpuinfo, re.MULTILINE)))
    facts = [SOURCE.read_text(), *compiler, *FLAGS, _run([*compiler, "--version"]), *processor]
    path = folder / f"winograd-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:32]}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (folder, path):
        found = place.lstat() if place.exists() or place.is_symlink() else None
        if found and (place.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022):
            raise OSError(f"{place} is a link, another user's or writable by others")
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with TemporaryDirectory(dir=folder) as beside:  # renamed, so that no process ever loads a part
            _run([*compiler, *FLAGS, "-c", str(SOURCE), "-o", f"{beside}/kernel.o"])
            _run([*compiler, "-shared", f"{beside}/kernel.o", "-o", f"{beside}/kernel.so"])
            os.chmod(f"{beside}/kernel.so", 0o700)
            os.replace(f"{beside}/kernel.so", path)
        return ctypes.CDLL(str(path))


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
