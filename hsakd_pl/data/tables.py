"""Data sets that are stored as tables: choose their splits and columns, and number their classes."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data.fetched import Pictures
from hsakd_pl.data.imagefolder import PictureDataModule, PictureOptions
from hsakd_pl.data.layout import Layout, split_of
from hsakd_pl.data.walk import canonical
from hsakd_pl.errors import UsageError, counted, did_you_mean
from hsakd_pl.files import local_path, naming
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import Unpack

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
    option: str,
    meaning: str,
    types: Mapping[str, str],
    usual: Sequence[str],
    usable: Sequence[str],
    chosen: str | None,
    origin: str,
) -> str:
    """Return the column for a purpose: the chosen one, or the only usual one.

    Args:
        option: option that chooses the column.
        meaning: what the column has to contain, for errors.
        types: type of each column by its name, for errors.
        usual: columns that have that content as a rule.
        usable: columns that can have that content.
        chosen: column that the user chose, if any.
        origin: where the data are, for errors.

    Raises UsageError if the chosen column is missing or of another type, or if none or several are usual.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    if chosen is None:
        if len(usual) == 1:
            return usual[0]
        if not usable:
            raise UsageError(f"{option}: {origin} has no column of {meaning}: convert one of {listed}")
        several = f"several columns of {meaning}" if usual else f"no column that clearly has {meaning}"
        raise UsageError(f"{option}: {origin} has {several}; set it to one of {', '.join(usual or usable)}")
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
    """Return True for a label that stands for none: a missing value, a number below 0, or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, int) and value < 0)


class TableOptions(PictureOptions, total=False):
    """The options of :class:`TableDataModule` that its subclasses take by keyword."""

    image_column: str | None
    label_column: str | None
    train_split: str | None
    val_split: str | None
    test_split: str | None


class TableDataModule(PictureDataModule):
    """Base class of data sets whose splits are tables with a column of pictures and a column of labels.

    A subclass opens the tables, numbers their labels and reads their pictures.

    Args:
        root: folder in which ``path`` is looked for, after the working folder.
        path: where the data set is.
        image_column: column of the pictures; by default the only one that has pictures.
        label_column: column of the labels; by default the only one with classes, or that is called ``label``.
        train_split: split for training; by default the one with a usual name.
        val_split: split for validation; likewise.
        test_split: split for testing; likewise.

    Other arguments: :class:`PictureDataModule`, :class:`ImageDataModule`.
    """

    def __init__(
        self,
        root: str | Path = "data",
        *,
        path: str | Path,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(root, **options)
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    @cached_property
    def tables(self) -> dict[str, Any]:
        """Return the table of each split by its name."""
        raise NotImplementedError(f"{type(self).__name__} must implement tables")

    @cached_property
    def _own_names(self) -> list[str]:
        """Return the class names of the data set itself."""
        raise NotImplementedError(f"{type(self).__name__} must implement _own_names")

    def _pictures(self, part: str) -> Pictures:
        """Return the pictures of a split."""
        raise NotImplementedError(f"{type(self).__name__} must implement _pictures")

    def _lacks_labels(self, part: str) -> bool:
        """Return True for a split without labels, which can neither validate nor test."""
        return False

    @property
    def origin(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path:
        """Return the folder or file that ``path`` names, in the working folder or in ``root``."""
        path = local_path("path", self.path)
        with naming(path):
            return path if path.exists() or not (self.root / path).exists() else self.root / path

    @property
    def is_local(self) -> bool:
        """Return True if the data set is on this machine."""
        return self.folder.exists()

    @cached_property
    def layout(self) -> Layout:
        """Return the names of the splits."""
        parts = {
            role: split_for(role, self.tables, getattr(self, option), self.origin) for role, option in ROLES.items()
        }
        if not any(parts.values()) and len(self.tables) == 1:
            [parts["train"]] = self.tables
        for role in ("val", "test"):
            name = parts[role]
            if name is not None and self._lacks_labels(name):
                rank_zero_info(f"The split {name} of {self.origin} has no labels and is left out")
                parts[role] = None
        if parts["test"] is None:
            parts["test"], parts["val"] = parts["val"], None
        return Layout(parts["train"], parts["val"], parts["test"])

    @property
    def roles(self) -> str:
        unused = [name for name in self.tables if name not in self.layout]
        return super().roles + (f"; the splits {', '.join(unused)} are not used" if unused else "")

    def lacks_train(self) -> str:
        return f"{self.origin} has no split to train on, only {', '.join(self.tables)}: set train_split"

    @property
    def _reference(self) -> str:
        """Return the split that names the classes: that for training if there is one."""
        if self.train_split in self.tables:
            return str(self.train_split)
        return split_for("train", self.tables, None, self.origin) or next(iter(self.tables))

    def read_class_names(self) -> list[str]:
        is_at_hand = "tables" in vars(self) or self.is_local
        return self._own_names if is_at_hand else []  # predictions of a trained network need no data

    def required_class_names(self) -> list[str]:
        return self._own_names

    def training_images(self) -> Any:
        is_whole = self.train_fraction == 1 and not self.val_fraction
        return self._pictures(self._reference) if is_whole else super().training_images()
