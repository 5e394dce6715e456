"""The files that a run writes: their names, their fields, and readers that validate them.

Accuracies, calibration errors and shares are fractions in [0, 1] in all of them.
"""

import csv
import json
import math
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming, read_text

RESULT_FILE = "result.json"
TEST_FILE = "test.json"
DETAILS_FILE = "test_details.json"
HISTORY_FILE = "metrics.csv"
# Written into test.json; files without a format, of earlier versions, hold percentages
TEST_FORMAT = 2
# Fields of test.json that are fractions: of the result, of each peer, and of each ensemble and early exit
FRACTIONS = re.compile(r"(peer\d+_)?(acc|branch\d+_(joint|class))(_top\d+)?|(peer\d+_)?ece|left")

Row = dict[str, Any]


class Field(NamedTuple):
    """The valid values of a field: their types, and the largest number."""

    types: tuple[type, ...]
    largest: float = 0


NUMBERS = (int, float)
FRACTION = Field((*NUMBERS, type(None)), 1)
AMOUNT = Field(NUMBERS, 1e9)
COUNT = Field((int, type(None)), 2**63)
TEXT = Field((str, type(None)))
MAPPING = Field((dict,))
LIST = Field((list,))
RESULT_FIELDS = {
    "last_val_acc": FRACTION,
    "best_val_acc": FRACTION,
    "images_per_second": AMOUNT,
    "seconds": AMOUNT,
    "device_hours": AMOUNT,
    "seed": COUNT,
    "data_seed": COUNT,
    "epochs": COUNT,
    "best_epoch": COUNT,
    "resumes": COUNT,
    "devices": COUNT,
    "recipe": TEXT,
    "device": TEXT,
    "precision": TEXT,
    "commit": TEXT,
    "protocol": MAPPING,
    "metrics": MAPPING,
    "versions": MAPPING,
    "finished": Field((bool,)),
    "changes": LIST,
    "config": LIST,
}
# The fields of the first version, without which a file is not a result
REQUIRED_FIELDS = ("config", "last_val_acc", "best_val_acc", "images_per_second", "seconds")
PROTOCOL_FIELDS = {
    "hash": Field((str,)),
    "options": MAPPING,
    "limited": MAPPING,
    "epochs": COUNT,
    "data": Field((dict, type(None))),
}
DATA_FIELDS = {"fingerprint": Field((str,)), "classes": COUNT, "images": COUNT, "pictures": Field((str,))}


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics as plain numbers, and NaN and inf as None, which JSON lacks; learning rates are left out."""
    numbers = {name: float(metrics[name]) for name in sorted(metrics) if not name.startswith("lr-")}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def is_finished(path: Path) -> bool:
    """Return True if a run that has ended wrote the ``result.json`` at ``path``; early versions wrote no others."""
    return _exists(path) and read_row(path).get("finished", True)


def read_row(path: Path) -> Row:
    """Read a ``result.json``; raises UsageError if it is not one."""
    row = _read_object(path) or {}
    try:
        _check_fields(row, RESULT_FIELDS, REQUIRED_FIELDS)
        if not all(isinstance(name, str) and name.encode() for name in row["config"]):
            raise ValueError("config is not a list of names")
        if row.get("protocol"):
            _check_fields(row["protocol"], PROTOCOL_FIELDS, ("hash", "options", "limited", "epochs"), "protocol.")
            for split, facts in (row["protocol"].get("data") or {}).items():
                _check_fields({"split": facts}, {"split": MAPPING}, ("split",), f"protocol.data.{split} ")
                _check_fields(facts, DATA_FIELDS, tuple(DATA_FIELDS), f"protocol.data.{split}.")
    except ValueError as error:
        raise _not_a_result(path, error) from error
    return row


def read_test(path: Path) -> Row | None:
    """Read a ``test.json``, None if it is missing; percentages of earlier versions become fractions.

    Raises UsageError if it is not one, or of a later format.
    """
    test = _read_object(path)
    if test is None:
        return None
    if "format" not in test:
        return _as_fractions(test)
    if test["format"] != TEST_FORMAT:
        raise UsageError(f"{path} has format {test['format']!s:.40}, this version reads {TEST_FORMAT}: update hsakd_pl")
    return test


def read_details(path: Path) -> Row | None:
    """Read a ``test_details.json``, None if it is missing; raises UsageError if it is not a JSON object."""
    return _read_object(path)


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a ``metrics.csv``: numbers by name for each epoch or logged step; raises UsageError if it is not one."""
    if not _exists(path):
        return []
    try:
        lines = csv.DictReader(StringIO(read_text(path)), strict=True)
        history = [{name: float(cell) for name, cell in line.items() if cell} for line in lines]
        if not all("epoch" in line for line in history):
            raise ValueError("it has a row without an epoch")
        return history
    except (ValueError, TypeError, csv.Error) as error:
        raise _not_a_result(path, error) from error


def _as_fractions(content: Any) -> Any:
    """Convert the percentages of a ``test.json`` without a format to fractions."""
    if isinstance(content, list):
        return [_as_fractions(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    return {
        name: _divide(value) if FRACTIONS.fullmatch(name) else _as_fractions(value) for name, value in content.items()
    }


def _divide(percentage: Any) -> Any:
    if isinstance(percentage, list):
        return [_divide(entry) for entry in percentage]
    return round(percentage / 100, 8) if type(percentage) in NUMBERS else percentage


def _exists(path: Path) -> bool:
    with naming(path):
        return path.exists()


def _read_object(path: Path) -> Row | None:
    if not _exists(path):
        return None
    try:
        content = json.loads(read_text(path), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise _not_a_result(path, error) from error
    return content


def _not_a_result(path: Path, reason: Exception) -> UsageError:
    return UsageError(f"{path} is not a result ({reason}): remove it and run its experiment again")


def _check_fields(row: Row, fields: Mapping[str, Field], required: tuple[str, ...], prefix: str = "") -> None:
    """Raise ValueError for a field that is missing or has a value of another type or size."""
    for name, field in fields.items():
        if name not in row and name not in required:
            continue
        value: Any = row.get(name, "missing" if not prefix else None)
        is_number = type(value) in NUMBERS
        if type(value) not in field.types or (is_number and not 0 <= value <= field.largest):
            raise ValueError(f"{prefix}{name} is {value!s:.40}")


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
