"""Choose the splits and the columns of a data set that is stored as tables, and number its classes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hsakd_pl.data.layout import split_of
from hsakd_pl.data.walk import canonical
from hsakd_pl.errors import UsageError, counted, did_you_mean
from hsakd_pl.files.weights import shorten

LABEL_COLUMNS = ("label", "labels", "class", "category", "target")  # of integers or text, where no column has classes
UNLABELLED = -1
ROLES = {"train": "train_split", "val": "val_split", "test": "test_split"}  # the option of each role


def split_for(role: str, names: Iterable[str], chosen: str | None, origin: str) -> str | None:
    """Return the split for a role: the chosen one, or the only one with a usual name; None if there is none.

    Args:
        role: ``train``, ``val`` or ``test``.
        names: names of the splits.
        chosen: name that the user chose, if any.
        origin: where the data are, for errors.

    Raises UsageError if the chosen split is missing, or if two have a usual name.
    """
    names = list(names)
    option = ROLES[role]
    if chosen is not None:
        if chosen not in names:
            hint = did_you_mean(chosen, names)
            raise UsageError(f"{option}: {origin} has no split {chosen}: {hint}it has {', '.join(names)}")
        return chosen
    found = [name for name in names if split_of(name) == role]
    if len(found) > 1:
        raise UsageError(f"{origin} has the splits {' and '.join(found)} for {role}: set {option} to one")
    return found[0] if found else None


def column_for(
    option: str, meaning: str, types: Mapping[str, str], usable: Sequence[str], chosen: str | None, origin: str
) -> str:
    """Return the column for a purpose: the chosen one, or the only one that is usable.

    Args:
        option: option that chooses the column.
        meaning: what the column has to contain, for errors.
        types: type of each column by its name, for errors.
        usable: columns that can have that content.
        chosen: column that the user chose, if any.
        origin: where the data are, for errors.

    Raises UsageError if the chosen column is missing or of another type, or if none or several are usable.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    if chosen is None:
        if len(usable) == 1:
            return usable[0]
        several = f"several columns of {meaning}: {', '.join(usable)}" if usable else f"no column of {meaning}"
        raise UsageError(f"{option}: {origin} has {several}; set it to one of {listed}")
    if chosen not in types:
        raise UsageError(f"{option}: {origin} has no column {chosen}: {did_you_mean(chosen, types)}it has {listed}")
    if chosen not in usable:
        raise UsageError(f"{option}: the column {chosen} of {origin} has no {meaning}; it has {listed}")
    return chosen


def class_names_of_values(values: Iterable[Any]) -> list[str]:
    """Return the names of the classes that labels of integers or text denote, sorted by their values."""
    return [canonical(str(value)) for value in sorted(value for value in set(values) if not is_missing(value))]


def positions_of(values: Sequence[Any], names: Sequence[str], split: str, origin: str) -> np.ndarray:
    """Return the position of each label's class (N,), -1 for a row without a label.

    Args:
        values: labels, of integers or text.
        names: class names in label order.
        split: name of the split, for errors.
        origin: where the data are, for errors.

    Raises UsageError for a class that is none of them.
    """
    positions = {name: label for label, name in enumerate(names)}
    labels = [UNLABELLED if is_missing(value) else positions.get(canonical(str(value))) for value in values]
    if None in labels:
        unknown = {str(value) for value, label in zip(values, labels, strict=True) if label is None}
        raise UsageError(lacks_images(split, sorted(unknown), origin))
    return np.asarray(labels, dtype=np.int64)


def lacks_images(split: str, names: list[str], origin: str) -> str:
    """Return the error for a split with classes of which the training split has no image."""
    return (
        f"the split {split} of {origin} has the {counted(len(names), 'class')} {shorten(names)}, of which the training "
        "split has no image: filter them out, or divide the data anew"
    )


def is_missing(value: Any) -> bool:
    """Return True for a label that stands for none."""
    return value is None or (isinstance(value, int) and value < 0)
