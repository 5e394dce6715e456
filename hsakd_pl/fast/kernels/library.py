"""Compile the C files next to this one once for the machine, and keep the library in the user's cache folder."""

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

from hsakd_pl.errors import UsageError
from hsakd_pl.files import cache_folder, replacing

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.c", "norms.c"))
HEADER = Path(__file__).with_name("vectors.h")
CAPABILITIES = ("AVX2", "AVX512")  # instruction sets that the kernels are written for, by PyTorch's names
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
CPUINFO = Path("/proc/cpuinfo")  # part of a build's name, since machines may share a cache folder
CHECKSUM_BYTES = 32  # of SHA-256, behind the library, where the loader does not look
COMPILER_TIMEOUT = 300  # seconds; compiling takes about three, and twenty times as long on a busy machine

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
        loaded = _load_from_cache()
    except (OSError, UsageError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        reason = message.strip().splitlines()[0]
        rank_zero_info(
            f"Using PyTorch's convolutions and norms, at half the speed: the C kernels cannot be compiled ({reason})"
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


def _load_from_cache() -> ctypes.CDLL:
    """Load the library from the user's cache folder, or from a temporary folder if that one cannot be used."""
    try:
        folder = cache_folder()
        if folder is None:
            raise OSError("no home folder for the cache")
        return _load(folder)
    except (OSError, UsageError) as error:  # read-only, full or owned by another user
        with TemporaryDirectory() as private:
            loaded = _load(Path(private))
        rank_zero_info(f"The C kernels were compiled for this process only: {error}")
        return loaded


def _load(folder: Path) -> ctypes.CDLL:
    """Load the library for these sources, compiler and processor from ``folder``; compile it if missing or damaged."""
    compiler = (os.environ.get("CC") or "cc").split()
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    processor = sorted(set(re.findall(r"^(?:model name|flags|Features).*", cpuinfo, re.MULTILINE)))
    code = [path.read_text() for path in (*SOURCES, HEADER)]
    inputs = [*code, *compiler, *FLAGS, _run([*compiler, "--version"]), *processor]
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    path = folder / f"kernels-{digest[:32]}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    _check_private(path)
    if not _is_whole(path):
        _compile(compiler, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another system with the same compiler, in a home folder that both share
        _compile(compiler, path)
        return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Return whether a library ends in the checksum of what is before it: to run a damaged one kills the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return content[-CHECKSUM_BYTES:] == hashlib.sha256(content[:-CHECKSUM_BYTES]).digest()


def _check_private(path: Path) -> None:
    """Raise OSError if a path exists and another user could have put a library there."""
    if path.is_symlink():
        raise OSError(f"{path} is a link")
    if path.exists():
        status = path.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{path} belongs to another user or is writable by others")


def _compile(compiler: list[str], path: Path) -> None:
    """Compile the kernels and write them to ``path``, complete or not at all, with the checksum behind them."""
    with TemporaryDirectory(dir=path.parent) as temporary:
        objects = [f"{temporary}/{source.stem}.o" for source in SOURCES]
        for source, compiled in zip(SOURCES, objects, strict=True):
            _run([*compiler, *FLAGS, "-c", str(source), "-o", compiled])
        _run([*compiler, "-shared", *objects, "-o", f"{temporary}/kernels.so"])
        content = Path(temporary, "kernels.so").read_bytes()
    with replacing(path, "wb") as file:
        os.fchmod(file.fileno(), 0o700)
        file.write(content + hashlib.sha256(content).digest())


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILER_TIMEOUT).stdout
