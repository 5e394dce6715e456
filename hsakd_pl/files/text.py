"""Paths, text, and files that are written whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hsakd_pl.errors import UsageError


def local_path(option: str, path: str | Path) -> Path:
    """Expand ``~``; raises UsageError naming ``option`` for a URL."""
    if re.match(r"\w{2,}://", str(path)):
        raise UsageError(f"{option}: {path} is a URL, a local path is needed: download it first")
    return Path(path).expanduser()


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Raise UsageError naming ``path`` for what the operating system says about it inside of this context."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def cache_folder() -> Path:
    """Where the package keeps what it can make again, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_pl"


def read_text(path: str | Path, most: int = 10_000_000) -> str:
    """Read UTF-8 text, with or without a byte order mark, of at most so many bytes; UsageError for anything else."""
    if not Path(path).is_file():
        raise UsageError(f"{path} is missing, or no file: check the path")
    if (size := Path(path).stat().st_size) > most:
        raise UsageError(f"{path} has {size:,} bytes, at most {most:,} are read: is it the right file?")
    try:
        with naming(path):
            text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    if "\0" in text:  # UTF-16 of plain letters
        raise UsageError(f"{path} is no UTF-8 text (a zero at character {text.index(chr(0))}): save it as UTF-8")
    return text


@contextmanager
def replacing(path: str | Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of ``path`` once it is complete and on the disk, and not at all after an error.

    It is written beside its place, under the name ``path`` with ``.partial``; a symbolic link at either is replaced.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "surrogateescape"} | options
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            with open(partial, mode.replace("w", "x"), **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
