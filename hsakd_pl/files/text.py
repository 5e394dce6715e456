"""Expand paths, read text, and write files completely or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hsakd_pl.errors import UsageError


def local_path(option: str, path: str | Path) -> Path:
    """Expand ``~``; raises UsageError for a URL, and for a path that the operating system refuses to look up."""
    if re.match(r"\w{2,}://", str(path)):
        raise UsageError(f"{option}: {path} is a URL, a local path is needed: download it first")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:  # ~NAME of an unknown user
        raise UsageError(f"{option}: {path} has no home folder: write the path without ~") from error
    with naming(path):
        expanded.exists()  # raises OSError for a name that is too long or in a folder without permission
    return expanded


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Raise UsageError naming ``path`` for what the operating system says about it inside of this context."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def cache_folder() -> Path:
    """Return the folder of the package in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_pl"


def read_text(path: str | Path, most: int = 10_000_000) -> str:
    """Read UTF-8 text of at most ``most`` bytes, with or without a byte order mark; raises UsageError otherwise."""
    try:
        with naming(path):
            if not Path(path).is_file():
                raise UsageError(f"{path} is missing or is not a file: check the path")
            size = Path(path).stat().st_size
            if size > most:
                raise UsageError(f"{path} has {size:,} bytes, at most {most:,} are read: is it the right file?")
            text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    if "\0" in text:  # UTF-16 of plain letters
        raise UsageError(f"{path} is not UTF-8 text (a zero at character {text.index(chr(0))}): save it as UTF-8")
    return text


@contextmanager
def replacing(path: str | Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` once it is complete and on the disk; after an error ``path`` is unchanged.

    Until then it is next to ``path``, with ``.partial`` at the end of its name. Symbolic links are replaced.
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
    """Flush the folder's entries, such as a new name, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
