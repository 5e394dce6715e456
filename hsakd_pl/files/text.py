"""Expand paths, read text, and write files completely or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files.system import Lock, flush, flush_folder, lock, remove_abandoned

LONGEST_STEM = 50  # characters of a name that a temporary name repeats: names have at most 255 bytes
TEMPORARY = re.compile(r"\.(?P<process>\d+)-[0-9a-f]{16}\.(?P<kind>partial|earlier)")  # after the final name


def local_path(option: str, path: str | Path) -> Path:
    """Expand ``~``; raises UsageError for what is not a path, and for one that the operating system refuses."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(
            f"{option} is a {type(path).__name__}, not a path: name a folder or a file; save_to_disk of Hugging Face's "
            "data sets writes one"
        )
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


def cache_folder() -> Path | None:
    """Return the folder of the package in the user's cache; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_pl"
    except RuntimeError:  # HOME is unset and the user id has no entry, as in containers
        return None


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

    Until then it is next to ``path`` under a name that no other process and no other writer uses, such as
    ``result.json.4711-8d7f0a9be21c3f65.partial``. What killed processes have left there is removed. Symbolic links are
    replaced.
    """
    path = Path(path)
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "surrogateescape"} | options
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial, file = _open_new(path, mode.replace("w", "x"), options)
        try:
            with file:
                yield file
                file.flush()
                flush(file.fileno())
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def temporary(path: Path, kind: str = "partial") -> Path:
    """Return a new name next to ``path``; ``kind`` is ``partial``, or ``earlier`` for what ``path`` was before."""
    return path.with_name(f"{path.name[:LONGEST_STEM]}.{os.getpid()}-{token_hex(8)}.{kind}")


def is_temporary(path: Path) -> bool:
    """Return whether :func:`temporary` named a path."""
    return re.search(rf"{TEMPORARY.pattern}$", path.name) is not None


def temporaries(path: Path, kind: str = "partial") -> list[Path]:
    """Return the paths next to ``path`` that :func:`temporary` named for it in other processes."""
    stem = path.name[:LONGEST_STEM]
    readable = os.access(path.parent, os.R_OK)
    names = [name for name in os.listdir(path.parent) if name.startswith(stem)] if readable else []
    paths = []
    for name in names:
        match = TEMPORARY.fullmatch(name, len(stem))
        if match and match["kind"] == kind and int(match["process"]) != os.getpid():
            paths.append(path.with_name(name))
    return paths


def _open_new(path: Path, mode: str, options: dict[str, Any]) -> tuple[Path, IO[Any]]:
    """Open a file under a new name and lock it, so that other processes see that its writer lives."""
    while True:
        partial = temporary(path)
        file = open(partial, mode, **options)  # noqa: SIM115 it outlives this function
        try:
            if lock(file.fileno()) is not Lock.TAKEN and partial.exists():
                return partial, file
        except BaseException:
            file.close()
            partial.unlink(missing_ok=True)
            raise
        file.close()  # another process took it for abandoned before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove the files that killed writers of ``path`` have left."""
    for partial in temporaries(path):
        with suppress(OSError):  # it has just been renamed, or belongs to another user
            remove_abandoned(partial)
