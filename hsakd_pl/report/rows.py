"""The files that runs leave, read with care."""

import csv
import json
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text

ROW, TEST, DETAILS, HISTORY = "result.json", "test.json", "test_details.json", "metrics.csv"
Row = dict[str, Any]

NUMBER = (int, float)
COUNTS = ("seed", "data_seed", "epochs", "best_epoch", "resumes", "devices")
# What a row holds: of which types, and the most that a number may be
FIELDS: dict[str, tuple[tuple[type, ...], float]] = {
    **{name: ((*NUMBER, type(None)), 1) for name in ("last_val_acc", "best_val_acc")},
    **dict.fromkeys(("images_per_second", "seconds", "device_hours"), (NUMBER, 1e9)),
    **{name: ((int, type(None)), 2**63) for name in COUNTS},
    **{name: ((str, type(None)), 0) for name in ("recipe", "device", "precision", "commit")},
    **dict.fromkeys(("protocol", "metrics", "versions"), ((dict,), 0)),
    **{"finished": ((bool,), 1), "changes": ((list,), 0), "config": ((list,), 0)},
}
PROTOCOL: dict[str, tuple[tuple[type, ...], float]] = {
    **{"hash": ((str,), 0), "options": ((dict,), 0), "limited": ((dict,), 0), "epochs": ((int, type(None)), 2**63)}
}
ALWAYS = ("config", "last_val_acc", "best_val_acc", "images_per_second", "seconds")  # older rows have these alone


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Give plain numbers by name, and None for NaN, which JSON lacks; the rate of the last step is no result."""
    numbers = {name: float(metrics[name]) for name in sorted(metrics) if not name.startswith("lr-")}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def seed_of(row: Row) -> str:
    """Name the seed of a run, of older ones that know none the folder."""
    own = f"{row['seed']}" if row.get("seed") is not None else row["folder"]
    return f"{own}, data {row['data_seed']}" if row.get("data_seed") is not None else own


def is_finished(path: Path) -> bool:
    """Whether a run that has ended left the row at ``path``; older rows were written at the end alone."""
    return path.exists() and read_row(path).get("finished", True)


def collect(folder: Path) -> list[Row]:
    """The rows of all runs below ``folder``, by folder; UsageError if there is none, or one that cannot be read.

    To a row's content come ``folder``, ``history`` (a dict an epoch), ``test`` and ``details`` (None before a test).
    """
    rows = [
        {
            **read_row(path),
            "folder": str(path.parent),
            "history": read_history(path.with_name(HISTORY)),
            "test": _read_object(path.with_name(TEST)),
            "details": _read_object(path.with_name(DETAILS)),
        }
        for path in sorted(folder.rglob(ROW))
    ]
    if not rows:
        raise UsageError(f"no {ROW} below {folder}: 'fit' writes one with every epoch")
    return rows


def read_row(path: Path) -> Row:
    """Read one row; UsageError for anything else."""
    row = _read_object(path) or {}
    try:
        for field, (types, most) in FIELDS.items():
            if field in row or field in ALWAYS:
                _check(field, row.get(field, "missing"), types, most)
        if not all(isinstance(name, str) and name.encode() for name in row["config"]):
            raise ValueError("config is no list of names")
        for field, (types, most) in PROTOCOL.items() if row.get("protocol") else ():
            _check(f"protocol.{field}", row["protocol"].get(field), types, most)
    except ValueError as error:
        raise _no_result(path, error) from error
    return row


def read_history(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.csv``: numbers by name for each epoch, or logged step; UsageError for anything else."""
    if not path.exists():
        return []
    try:
        lines = csv.DictReader(StringIO(read_text(path)), strict=True)
        history = [{name: float(cell) for name, cell in line.items() if cell} for line in lines]
        if not all("epoch" in line for line in history):
            raise ValueError("it has a row without an epoch")
        return history
    except (ValueError, TypeError, csv.Error) as error:
        raise _no_result(path, error) from error


def _read_object(path: Path) -> Row | None:
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise _no_result(path, error) from error
    return content


def _no_result(path: Path, reason: Exception) -> UsageError:
    return UsageError(f"{path} is no result ({reason}): remove it and run its experiment again")


def _check(field: str, value: Any, types: tuple[type, ...], most: float) -> None:
    if type(value) not in types or (type(value) in NUMBER and not 0 <= value <= most):
        raise ValueError(f"{field} is {value!s:.40}")


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
