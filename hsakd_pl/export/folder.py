"""The folder of an export: written completely or not at all, and never over other files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming, read_text, replacing
from hsakd_pl.files.hub import BRANCHES_FILE, CARD_FILE, CONFIG_FILE, EXPORT_FILE, WEIGHTS_FILE
from hsakd_pl.files.lock import sole_writer
from hsakd_pl.files.schema import parse_json
from hsakd_pl.files.text import is_temporary, temporaries, temporary

EXPORTED_NAMES = {
    WEIGHTS_FILE,
    BRANCHES_FILE,
    CONFIG_FILE,
    EXPORT_FILE,
    CARD_FILE,
    "model.pt2",
    "model.onnx",
    "model.int8.onnx",
}


def check_folder(folder: Path) -> None:
    """Raise UsageError if a folder contains anything but an earlier export, whose card is as it was written."""
    with naming(folder):
        if folder.is_file():
            raise UsageError(f"folder: {folder} is a file; name another folder")
        if not folder.is_dir():
            return
        names = {path.name for path in folder.iterdir() if not is_temporary(path)} - {_lock_file(folder)}
    other_names = names - EXPORTED_NAMES
    if other_names:
        raise UsageError(
            f"folder: {folder} contains {min(other_names)}, which is not part of an export; name another folder"
        )
    if names and not _is_export(folder / CONFIG_FILE):
        raise UsageError(f"folder: {folder} exists and is not an export; name another folder")
    if _is_edited(folder):
        raise UsageError(
            f"folder: {folder / CARD_FILE} was edited after its export and would be replaced; move it, or name another "
            "folder"
        )


def card_digest(folder: Path) -> str:
    """Return the SHA-256 of an export's model card."""
    return hashlib.sha256((folder / CARD_FILE).read_bytes()).hexdigest()


def _is_edited(folder: Path) -> bool:
    """Return whether the card differs from the one that was written; exports of early versions do not say."""
    if not ((folder / EXPORT_FILE).is_file() and (folder / CARD_FILE).is_file()):
        return False
    try:
        digest = parse_json(read_text(folder / EXPORT_FILE)).get("card_sha256")
    except (ValueError, AttributeError):
        return False
    return digest is not None and digest != card_digest(folder)


def _is_export(config: Path) -> bool:
    """Return whether the configuration is that of an export."""
    try:
        return "hsakd_pl" in parse_json(read_text(config))["versions"]
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` at the end, and is deleted after an error.

    It is made next to ``folder``, or next to what ``folder`` is a link to, under a name of its own. A folder that
    cannot be renamed, such as the working folder or a mount, keeps its place: the files in it are replaced one by one,
    and ``config.json``, without which it is not an export, is the last. An earlier export that a killed process has
    left under another name is put back first.

    Raises UsageError if ``folder`` contains other files, or if another process exports into it.
    """
    folder = Path(os.path.realpath(folder))
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    surroundings = folder.parent if _is_writable(folder.parent) else folder
    with sole_writer(folder, "name another folder", surroundings / _lock_file(folder)):
        _restore(folder)
        check_folder(folder)
        for abandoned in temporaries(surroundings / folder.name):
            shutil.rmtree(abandoned, ignore_errors=True)
        partial = temporary(surroundings / folder.name)
        with naming(partial):
            partial.mkdir(parents=True)
        try:
            yield partial
            with naming(folder):
                if folder.exists():
                    _replace(folder, partial)
                else:
                    partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _lock_file(folder: Path) -> str:
    return f".{folder.name[:50]}.writer"


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _restore(folder: Path) -> None:
    """Put back an earlier export that a killed process has moved away, also one of the package's earlier versions."""
    with naming(folder):
        moved = temporaries(folder, "earlier")
        for earlier in (*moved, folder.with_name(f"{folder.name}.earlier")):
            if not folder.exists() and _is_export(earlier / CONFIG_FILE):
                earlier.rename(folder)
        for earlier in moved:
            shutil.rmtree(earlier, ignore_errors=True)


def _replace(folder: Path, partial: Path) -> None:
    """Replace an earlier export by a new one: by renaming both where that is possible, or else file by file."""
    earlier = temporary(folder, "earlier")
    try:
        if _try_rename(folder, earlier):
            partial.rename(folder)
        else:
            _replace_files(folder, partial)
    finally:
        if not folder.exists():
            earlier.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)


def _try_rename(folder: Path, name: Path) -> bool:
    """Rename a folder, unless it is the working folder or above it; return whether that was possible."""
    working_folder = Path.cwd()
    if folder == working_folder or folder in working_folder.parents:
        return False
    try:
        folder.rename(name)
    except OSError:  # a mount, a layer of a container, a folder of another user, or in one that is read-only
        return False
    return True


def _replace_files(folder: Path, partial: Path) -> None:
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    new_names = {path.name for path in partial.iterdir()}
    for name in EXPORTED_NAMES - new_names:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(new_names, key=lambda name: name == CONFIG_FILE):
        with (partial / name).open("rb") as source, replacing(folder / name, "wb") as target:
            shutil.copyfileobj(source, target)
