"""Calls that some file systems of clusters, FUSE and containers do not support: flushing and record locks."""

import errno
import fcntl
import logging
import os
from enum import Enum
from functools import cache
from pathlib import Path

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)


class Lock(Enum):
    """The result of an attempt to lock a file."""

    HELD = "held by this process"
    TAKEN = "held by another process"
    UNSUPPORTED = "not supported by the file system"


def lock(descriptor: int, wait: bool = False) -> Lock:
    """Lock a file that is open for writing, until it is closed; ``wait`` for another process to release it.

    A record lock of POSIX: it ends with its process, on any machine, and child processes do not inherit it. A process
    does not exclude itself.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(
            f"The file system does not support locks ({error.strerror}): never write into a folder from two processes"
        )
        return Lock.UNSUPPORTED
    return Lock.HELD


def remove_abandoned(path: Path) -> None:
    """Remove a file of another process, which locks it while it writes, if that process has ended."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if lock(descriptor) is Lock.HELD:
            path.unlink()
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Flush an open file or folder to the disk, where the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EBADF):
            raise
        warn_once(
            f"The file system cannot flush files to the disk ({error.strerror}): a power failure may lose recent ones"
        )


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, such as a new name, to the disk, where the file system supports that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be writable without being readable
        return
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


@cache
def warn_once(message: str) -> None:
    """Log a warning at the first call with this message."""
    logging.getLogger("hsakd_pl").warning(message)
