"""The files that a run writes: their names, their fields, and readers that validate them.

Accuracies, calibration errors and shares are fractions in [0, 1] in all of them.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming, read_text
from hsakd_pl.files.schema import Anything, Fields, Flag, Items, Number, Text, Tuple, VersionText, parse_json

CONFIG_FILE = "config.yaml"  # Lightning's name for it
RESULT_FILE = "result.json"
TEST_FILE = "test.json"
DETAILS_FILE = "test_details.json"
HISTORY_FILE = "metrics.csv"
STEP_COLUMNS = {"epoch", "step", "lr", "train/loss_step"}  # of the rows of logged steps in metrics.csv
# Written into test.json; files without a format, of earlier versions, hold percentages
TEST_FORMAT = 2
# In bytes: a run of the paper that logs every step writes 15 MB, one of ImageNet 50 MB
LARGEST_HISTORY = 500_000_000
LONGEST_ROW = 10_000_000  # characters of a line of rows.jsonl
# Fields of test.json that are fractions: of the result, of each peer, and of each ensemble and early exit
FRACTIONS = re.compile(r"(peer\d+_|ensemble_)?((linear_)?acc|branch\d+_(joint|class))(_top\d+)?|(peer\d+_)?ece|left")

Row = dict[str, Any]

FRACTION = Number(0, 1, optional=True)
AMOUNT = Number()
COUNT = Number(0, 2**63, whole=True, optional=True)
LABEL = Number(0, 1e9, whole=True)
PROBABILITY = Number(0, 1)
POSITION = Number(-1e9, 1e9)
POSITION_IN_RUN = Number(0, 2**63)
METRIC = Number(-1e300, 1e300, optional=True)
OPTIONAL_TEXT = Text(optional=True)
SPLIT_FIELDS = Fields(
    {"fingerprint": Text(), "classes": COUNT, "images": COUNT, "pictures": Text()},
    required=("fingerprint", "classes", "images", "pictures"),
)
PROTOCOL_FIELDS = Fields(
    {
        "hash": Text(),
        "options": Fields(),
        "limited": Fields(),
        "epochs": Number(-1, 2**63, whole=True, optional=True),
        "data": Fields(others=SPLIT_FIELDS, optional=True),
        "statistics": Fields(others=Items(METRIC), optional=True),
        "teacher_acc": FRACTION,
        "compared_images": COUNT,
        "precision": OPTIONAL_TEXT,
        "validated_on": OPTIONAL_TEXT,
        "weights_sha256": OPTIONAL_TEXT,
        "teacher_sha256": OPTIONAL_TEXT,
        "projection_sha256": OPTIONAL_TEXT,
        "cost_sha256": OPTIONAL_TEXT,
        "views": COUNT,
    },
    required=("hash", "options", "limited", "epochs"),
)
CPU_FIELDS = Fields(
    {
        "model": Text(),
        "instructions": Text(),
        "used_by_pytorch": Text(),
        "cores": COUNT,
        "threads": COUNT,
        "spin_count": OPTIONAL_TEXT,
    }
)
COSTS = Fields({"trained": COUNT, "deployed": Items(COUNT)})
CHANGE_FIELDS = Fields({"option": Text(), "step": COUNT, "epoch": COUNT}, required=("option",))
RESULT_FIELDS = Fields(
    {
        "last_val_acc": FRACTION,
        "best_val_acc": FRACTION,
        "images_per_second": AMOUNT,
        "seconds": AMOUNT,
        "device_hours": AMOUNT,
        "seed": COUNT,
        "data_seed": COUNT,
        "epochs": COUNT,
        "best_epoch": COUNT,
        "steps": COUNT,
        "planned_steps": COUNT,
        "last_val_step": COUNT,
        "resumes": COUNT,
        "devices": COUNT,
        "recipe": OPTIONAL_TEXT,
        "device": OPTIONAL_TEXT,
        "precision": OPTIONAL_TEXT,
        "cpu": CPU_FIELDS,
        "parameters": COSTS,
        "multiply_adds": replace(COSTS, optional=True),
        "commit": OPTIONAL_TEXT,
        "teacher_sha256": OPTIONAL_TEXT,
        "weights_digest": OPTIONAL_TEXT,
        "best_weights_digest": OPTIONAL_TEXT,
        "protocol": PROTOCOL_FIELDS,
        "metrics": Fields(others=METRIC),
        "versions": Fields(others=Text()),
        "finished": Flag(),
        "changes": Items(CHANGE_FIELDS),
        "config": Items(Text()),
    },
    # the fields of the first version, without which a file is not a result
    required=("config", "last_val_acc", "best_val_acc", "images_per_second", "seconds"),
)
ENSEMBLE_FIELDS = {"acc": PROBABILITY, "nll": Number(), "ece": FRACTION, "multiply_adds": Number(0, 1e18)}
EXIT_FIELDS = Fields(
    ENSEMBLE_FIELDS | {"threshold": Number(), "left": Items(PROBABILITY)},
    required=("threshold", "acc", "multiply_adds"),
)
TEST_FIELDS = Fields(
    {
        "format": Number(1, 1e9, whole=True),
        "checkpoint": OPTIONAL_TEXT,
        "epoch": COUNT,
        "sha256": OPTIONAL_TEXT,
        "weights_digest": OPTIONAL_TEXT,
        "split": Text(),
        "data": OPTIONAL_TEXT,
        "images": COUNT,
        "split_images": COUNT,
        "limited": Fields(optional=True),
        "nll": METRIC,
        "ensemble": Fields(others=Fields(ENSEMBLE_FIELDS, required=("acc", "multiply_adds"))),
        "early_exit": Items(EXIT_FIELDS),
        "cascade": Items(EXIT_FIELDS),
        "seconds": AMOUNT,
        "device": OPTIONAL_TEXT,
        "devices": COUNT,
        "precision": OPTIONAL_TEXT,
        "cpu": CPU_FIELDS,
        "versions": Fields(others=Text()),
    }
)
# In a checkpoint, the smallest and the largest value of each activation of each network that was trained for int8
QUANTISATION = "quantisation"
# Of a checkpoint, what an evaluation and Lightning's migration of older versions use
CHECKPOINT_FIELDS = Fields(
    {
        "epoch": Number(0, 2**63, whole=True),
        "global_step": Number(0, 2**63, whole=True),
        "pytorch-lightning_version": VersionText(),
        "hyper_parameters": Fields(others=Anything()),
        "hparams_name": OPTIONAL_TEXT,
        "transforms": Items(Text()),
        "networks": Items(OPTIONAL_TEXT),
        "probe": Flag(),
        "embedding": Number(2, 1e6, whole=True),
        QUANTISATION: Items(Fields(others=Tuple((Number(-1e30, 1e30), Number(-1e30, 1e30))))),
        "callbacks": Fields(others=Fields(others=Anything())),
        "loops": Fields(others=Fields(others=Anything())),
        "optimizer_states": Items(Anything()),
        "lr_schedulers": Items(Anything()),
        "loggers": Fields(others=Anything()),
    },
    required=("epoch", "global_step", "pytorch-lightning_version"),
    others=Anything(),
)
EMBEDDING_FIELDS = Fields(
    {"method": Text(), "points": Items(Tuple((POSITION, POSITION)), fewest=1), "labels": Items(LABEL)},
    required=("method", "points", "labels"),
    optional=True,
)
EXAMPLE_FIELDS = Fields(
    {
        "label": LABEL,
        "transforms": Text(),
        "pictures": Items(Text()),
        "heads": Fields(others=Items(Items(Tuple((LABEL, PROBABILITY))))),
    },
    required=("label", "transforms", "pictures", "heads"),
    optional=True,
)
DETAILS_FIELDS = Fields(
    {
        "confused": Items(Tuple((LABEL, LABEL, Number(1, 1e12, whole=True)))),
        "reliability": Items(Tuple((Number(1, 1e12, whole=True), PROBABILITY, PROBABILITY), optional=True)),
        "embedding": EMBEDDING_FIELDS,
        "example": EXAMPLE_FIELDS,
        "class_names": Items(Text(), optional=True),
    },
    required=("confused", "reliability", "embedding", "example", "class_names"),
)


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics as plain numbers, and NaN and inf as None, which JSON lacks; learning rates are left out."""
    numbers = {name: float(metrics[name]) for name in sorted(metrics) if not name.startswith("lr-")}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def of_validation(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the metrics that a validation logs: those whose names begin with ``val``."""
    return {name: value for name, value in metrics.items() if name.startswith("val")}


def for_weights(name: str, digest: str) -> str:
    """Return the name of a file of a test of other weights than those of ``test.json``.

    Examples:
        >>> for_weights("test.json", "0123456789abcdef")
        'test_0123456789ab.json'
    """
    path = Path(name)
    return f"{path.stem}_{digest[:12]}{path.suffix}"


def ensemble_title(name: str) -> str:
    """Return the words for the name that ``test.json`` has for an ensemble or an early exit."""
    return name.replace("_all_views", ", all views").replace("_", " ")


def is_finished(path: Path) -> bool:
    """Return True if a run that has ended wrote the ``result.json`` at ``path``; early versions wrote no others."""
    return _exists(path) and read_row(path).get("finished", True)


def read_row(path: Path) -> Row:
    """Read a ``result.json``; raises UsageError if it is not one."""
    row = _read_object(path) or {}
    _check(path, RESULT_FIELDS, row)
    if row.get("protocol", {}).get("epochs") == -1:
        row["protocol"]["epochs"] = None  # earlier versions wrote Lightning's number for no limit
    return row


def check_checkpoint(content: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError if a part of a checkpoint that an evaluation uses has another type than training gave it."""
    try:
        CHECKPOINT_FIELDS.check(content)
    except ValueError as error:
        raise UsageError(f"{origin} is damaged or forged ({error!s:.200}): use another checkpoint") from error


def read_test(path: Path) -> Row | None:
    """Read a ``test.json``, None if it is missing; percentages of earlier versions become fractions.

    Raises UsageError if it is not one, or of a later format.
    """
    test = _read_object(path)
    if test is None:
        return None
    if "format" not in test:
        test = _as_fractions(test)
    elif type(test["format"]) is int and test["format"] != TEST_FORMAT:
        raise UsageError(f"{path} has format {test['format']!s:.40}, this version reads {TEST_FORMAT}: update hsakd_pl")
    accuracies = {name: FRACTION for name in test if FRACTIONS.fullmatch(name)}
    likelihoods = {name: METRIC for name in test if name.endswith("_nll")}
    _check(path, replace(TEST_FIELDS, declared={**TEST_FIELDS.declared, **accuracies, **likelihoods}), test)
    return test


def read_details(path: Path) -> Row | None:
    """Read a ``test_details.json``, None if it is missing; raises UsageError if it is not one."""
    details = _read_object(path)
    if details is None:
        return None
    _check(path, DETAILS_FIELDS, details)
    try:
        _check_labels(details)
    except ValueError as error:
        raise _not_a_result(path, error) from error
    return details


def _check_labels(details: Row) -> None:
    """Raise ValueError where parts of the details do not fit together: labels and names, points and labels."""
    labels = [label for true, predicted, _ in details["confused"] for label in (true, predicted)]
    embedding = details["embedding"]
    if embedding is not None:
        labels += embedding["labels"]
        if len(embedding["labels"]) != len(embedding["points"]):
            raise ValueError("embedding has not as many labels as points")
    example = details["example"]
    if example is not None:
        labels.append(example["label"])
        for head, rows in example["heads"].items():
            labels += [label for row in rows for label, _ in row]
            if len(rows) != len(example["pictures"]):
                raise ValueError(f"example.heads.{head:.40} has not as many rows as there are pictures")
    names = details["class_names"]
    if names is not None and labels and max(labels) >= len(names):
        raise ValueError(f"class_names has {len(names)} names, but there is the label {max(labels)}")
    if not any(details["reliability"]):
        raise ValueError("reliability has no images")


def read_predictions(path: Path) -> Iterator[Row]:
    """Yield the lines of a ``predictions.jsonl``; one empty line if it is missing or is not one."""
    try:
        with naming(path), path.open(encoding="utf-8") as file:
            for text in file:
                line = parse_json(text)
                yield line if isinstance(line, dict) else {}
    except (UsageError, ValueError):
        yield {}


def is_report(path: Path) -> bool:
    """Return whether a ``rows.jsonl`` was written by a report, as its first line shows, or is missing."""
    if not _exists(path):
        return True
    try:
        with naming(path), path.open(encoding="utf-8") as file:
            row = parse_json(file.readline(LONGEST_ROW))
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() >= {"folder", *RESULT_FIELDS.required}


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a ``metrics.csv``: numbers by name for each epoch or logged step; raises UsageError if it is not one."""
    if not _exists(path):
        return []
    try:
        lines = csv.DictReader(StringIO(read_text(path, LARGEST_HISTORY)), strict=True)
        history = [{name: float(cell) for name, cell in line.items() if cell} for line in lines]
        for line in history:
            POSITION_IN_RUN.check(line.get("epoch"), "a row's epoch")
            POSITION_IN_RUN.check(line.get("step", 0), "a row's step")
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
    is_number = type(percentage) in (int, float) and abs(percentage) <= 100
    return round(percentage / 100, 8) if is_number else percentage


def _exists(path: Path) -> bool:
    with naming(path):
        return path.exists()


def _read_object(path: Path) -> Row | None:
    if not _exists(path):
        return None
    try:
        content = parse_json(read_text(path))
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise _not_a_result(path, error) from error
    return content


def _check(path: Path, schema: Fields, content: Row) -> None:
    try:
        schema.check(content)
    except ValueError as error:
        raise _not_a_result(path, error) from error


def _not_a_result(path: Path, reason: Exception) -> UsageError:
    return UsageError(f"{path} is not a result ({reason!s:.200}): remove it and run its experiment again")
