"""Let one process at a time write into a folder, by a lock."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files.system import Lock, lock
from hsakd_pl.files.text import naming

FILE = ".writer"


@contextmanager
def sole_writer(
    folder: str | Path,
    remedy: str = "name another folder with --trainer.default_root_dir",
    lock_file: Path | None = None,
) -> Iterator[None]:
    """Lock ``folder`` inside of this context; raises UsageError while another process holds it, on any machine.

    The lock ends with its process. The locked file names the owner, and is removed at the end.

    Args:
        folder: folder to lock; it is created if it is missing.
        remedy: what the user can do instead of waiting.
        lock_file: file to lock, by default ``.writer`` in the folder.
    """
    with _opened(lock_file or Path(folder, FILE), wait=False) as (descriptor, state):
        if state is Lock.TAKEN:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise UsageError(f"{folder} is in use by {owner}: wait until it ends, or {remedy}")
        _name_owner(descriptor)
        yield


@contextmanager
def in_turn(lock_file: Path) -> Iterator[None]:
    """Wait until no other process is inside of this context for the same file, then enter it."""
    with _opened(lock_file, wait=True) as (descriptor, _):
        _name_owner(descriptor)
        yield


@contextmanager
def _opened(path: Path, wait: bool) -> Iterator[tuple[int, Lock]]:
    """Open the file and try to lock it; a lock that was obtained ends, and its file is removed, with this context."""
    with naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with naming(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with naming(path):
                state = lock(descriptor, wait)
            if state is Lock.HELD and not _is_at(descriptor, path):
                continue  # the process that held it has removed the file
            try:
                yield descriptor, state
            finally:
                if state is not Lock.TAKEN:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one that has the path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _name_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
