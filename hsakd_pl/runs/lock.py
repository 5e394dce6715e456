"""A lock that lets one process at a time write into a run's folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming

FILE = ".writer"


@contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Lock ``folder`` inside of this context; raises UsageError while another process holds it, on any machine.

    A record lock of POSIX: it ends with its process, and child processes do not inherit it. The locked file names the
    owner and is not removed.
    """
    with naming(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder, FILE)
    with naming(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise UsageError(
                f"{folder} is in use by {owner}: wait until it ends, or name another folder with "
                "--trainer.default_root_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
