"""Compile C files once for the machine, and keep the library in the user's cache folder."""

import ctypes
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError
from hsakd_pl.files.text import cache_folder, replacing

CPUINFO = Path("/proc/cpuinfo")  # part of a build's name, since machines may share a cache folder
CHECKSUM_BYTES = 32  # of SHA-256, behind the library, where the loader does not look
COMPILER_TIMEOUT = 300  # seconds; compiling takes about three, and twenty times as long on a busy machine
FAILURES = (OSError, UsageError, subprocess.SubprocessError)  # what load raises


class Code(NamedTuple):
    """Hold what a library is compiled from.

    Args:
        name: name of the library, for its file and for messages.
        sources: C files.
        flags: options of the compiler.
        headers: files that the sources include, apart from the system's.
        libraries: options that name the libraries it is linked with.
    """

    name: str
    sources: Sequence[Path]
    flags: Sequence[str]
    headers: Sequence[Path] = ()
    libraries: Sequence[str] = ()


def load(code: Code) -> ctypes.CDLL:
    """Load a library from the user's cache folder, or from a temporary folder if that one cannot be used.

    It is compiled if it is missing or damaged, or if its sources, the compiler or the processor have changed. Raises
    one of ``FAILURES`` if that is impossible.
    """
    try:
        folder = cache_folder()
        if folder is None:
            raise OSError("no home folder for the cache")
        return _load_from(folder, code)
    except (OSError, UsageError) as error:  # read-only, full or owned by another user
        with TemporaryDirectory() as private:
            loaded = _load_from(Path(private), code)
        rank_zero_info(f"The C {code.name} were compiled for this process only: {error}")
        return loaded


def reason_of(error: Exception) -> str:
    """Return the first line of what the compiler, or the system, said."""
    message = getattr(error, "stderr", None) or str(error)
    return str(message).strip().splitlines()[0]


def _load_from(folder: Path, code: Code) -> ctypes.CDLL:
    """Load the library for these sources, compiler and processor from ``folder``; compile it if missing or damaged."""
    compiler = (os.environ.get("CC") or "cc").split()
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    processor = sorted(set(re.findall(r"^(?:model name|flags|Features).*", cpuinfo, re.MULTILINE)))
    texts = [path.read_text() for path in (*code.sources, *code.headers)]
    inputs = [*texts, *compiler, *code.flags, *code.libraries, _run([*compiler, "--version"]), *processor]
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    path = folder / f"{code.name}-{digest[:32]}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    _check_private(path)
    if not _is_whole(path):
        _compile(compiler, code, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another system with the same compiler, in a home folder that both share
        _compile(compiler, code, path)
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


def _compile(compiler: list[str], code: Code, path: Path) -> None:
    """Compile the sources and write them to ``path``, complete or not at all, with the checksum behind them."""
    with TemporaryDirectory(dir=path.parent) as temporary:
        objects = [f"{temporary}/{source.stem}.o" for source in code.sources]
        for source, compiled in zip(code.sources, objects, strict=True):
            _run([*compiler, *code.flags, "-c", str(source), "-o", compiled])
        _run([*compiler, "-shared", *objects, *code.libraries, "-o", f"{temporary}/library.so"])
        content = Path(temporary, "library.so").read_bytes()
    with replacing(path, "wb") as file:
        os.fchmod(file.fileno(), 0o700)
        file.write(content + hashlib.sha256(content).digest())


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILER_TIMEOUT).stdout
