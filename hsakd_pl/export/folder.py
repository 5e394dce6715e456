"""The folder of an export: written completely or not at all, and never over other files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from hsakd_pl.files import naming, read_text

EXPORTED_NAMES = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, "model.pt2", "model.onnx", "model.int8.onnx"}


def check_folder(folder: Path) -> None:
    """Raise UsageError if a folder contains anything but an earlier export."""
    with naming(folder):
        if folder.is_file():
            raise UsageError(f"folder: {folder} is a file; name another folder")
        if not folder.is_dir():
            return
        names = {path.name for path in folder.iterdir()}
    other_names = names - EXPORTED_NAMES
    if other_names:
        raise UsageError(
            f"folder: {folder} contains {min(other_names)}, which is not part of an export; name another folder"
        )
    if names and not _is_export(folder / CONFIG_FILE):
        raise UsageError(f"folder: {folder} exists and is not an export; name another folder")


def _is_export(config: Path) -> bool:
    """Return whether the configuration is that of an export."""
    try:
        return "hsakd_pl" in json.loads(read_text(config))["versions"]
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` at the end, and is deleted after an error."""
    check_folder(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    earlier = folder.with_name(f"{folder.name}.earlier")
    shutil.rmtree(partial, ignore_errors=True)
    with naming(folder):
        partial.mkdir(parents=True)
    try:
        yield partial
        with naming(folder):
            if folder.exists():
                shutil.rmtree(earlier, ignore_errors=True)
                folder.rename(earlier)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)
