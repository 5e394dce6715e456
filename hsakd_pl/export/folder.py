"""The folder of an export: written whole or not at all, and never over anything else."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import CARD, CONFIG, WEIGHTS
from hsakd_pl.files import read_text

FILES = {WEIGHTS, CONFIG, CARD, "model.pt2", "model.onnx", "model.int8.onnx"}


def check_folder(folder: Path) -> None:
    """Raise UsageError where a folder holds anything but an earlier export."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := found - FILES:
        raise UsageError(f"folder: {folder} holds {min(others)}, which is of no export: name another folder")
    if folder.is_file() or (found and not _is_export(folder / CONFIG)):
        raise UsageError(f"folder: {folder} is there already, and no export: name another folder")


def _is_export(config: Path) -> bool:
    try:
        return "hsakd_pl" in json.loads(read_text(config))["versions"]
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` that takes its place at the end, and not at all after an error."""
    check_folder(folder)
    partial, earlier = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "earlier"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            folder.rename(earlier)
        partial.rename(folder)
    finally:
        for left in (partial, earlier):
            shutil.rmtree(left, ignore_errors=True)
