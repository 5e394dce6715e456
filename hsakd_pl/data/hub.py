"""Data sets of Hugging Face: from the hub, of parquet or arrow files, or as save_to_disk wrote them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data.fetched import Picture, Pictures, Source
from hsakd_pl.data.splits import Split, check_class_names
from hsakd_pl.data.tables import (
    LABEL_COLUMNS,
    UNLABELLED,
    TableDataModule,
    TableOptions,
    class_names_of_values,
    column_for,
    lacks_images,
    positions_of,
)
from hsakd_pl.data.walk import canonical, contains_images
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import read_text
from hsakd_pl.files.hub import obstacle
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import Unpack

BYTES = ("binary", "large_binary")
TEXT = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Rows:
    """Fetch the pictures of a table as they are stored, without decoding them.

    Args:
        table: memory-mapped table whose pictures are not decoded.
        column: column of the pictures.
        name: name of the table, for errors.
        folder: folder that relative paths of files start from, if they are not those from the working folder.
    """

    table: Any
    column: str
    name: str
    folder: Path

    def __call__(self, indices: list[int]) -> list[Source]:
        pictures = self.table[indices][self.column]
        return [self._source(picture, index) for picture, index in zip(pictures, indices, strict=True)]

    def _source(self, picture: Any, index: int) -> Source:
        name = f"{self.name}[{index}]"
        if picture is None or (picture["bytes"] is None and picture["path"] is None):
            raise UsageError(f"{name} has no picture in the column {self.column}: filter such rows out")
        if picture["bytes"] is not None:
            return Picture(picture["bytes"], name)
        for path in (str(picture["path"]), os.path.join(self.folder, str(picture["path"]))):
            if os.path.exists(path):
                return path
        raise UsageError(
            f"{name}: there is no file {picture['path']:.200} in the working folder or in {self.folder}: write "
            "complete paths, or the contents of the files"
        )


class HubDataModule(TableDataModule):
    """Load a data set of Hugging Face's library ``datasets`` (``pip install 'hsakd_pl[datasets]'``).

    Rows stay in the memory-mapped table, of which workers need no copy, and pictures are decoded as those of class
    folders are: upright, with white behind transparent pixels, 16 bits scaled. Splits are recognised by their usual
    names (``train``, ``validation``, ``test``), and the log states them. A split for testing without labels is left
    out. Labels are a column of classes, whose names and order are kept; of integers; or of text, in sorted order. For
    class folders of images use :class:`ImageFolderDataModule`.

    Args:
        root: folder in which ``path`` is looked for, after the working folder.
        path: name on the hub, such as ``uoft-cs/cifar100``; a folder of parquet or arrow files, or such a file; or a
            folder that ``save_to_disk`` wrote. A folder with that name takes precedence over the hub.
        subset: configuration of a data set that has several.
        revision: branch, tag or commit on the hub.

    Other arguments: :class:`TableDataModule`, :class:`PictureDataModule`, :class:`ImageDataModule`.

    Examples:
        >>> hub = HubDataModule(path="uoft-cs/cifar100", label_column="fine_label", image_size=32)  # doctest: +SKIP
        >>> data = HubDataModule(path="photos-saved", image_size=32, batch_size=4, num_workers=0)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4]))
    """

    def __init__(
        self,
        root: str | Path = "data",
        *,
        path: str | Path,
        subset: str | None = None,
        revision: str | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        super().__init__(root, path=path, **options)
        self.subset = subset
        self.revision = revision

    @cached_property
    def tables(self) -> dict[str, Any]:
        """Return the table of each split by its name, without a format or transform that was set."""
        folder = self.folder
        if folder.exists():
            self._check_local()
            found = _load_local(folder)
        else:
            found = _load_from_hub(str(self.path), self.subset, self.revision)
        splits = found if isinstance(found, dict) else {"train": found}
        return {str(name): table.with_format(None) for name, table in splits.items()}

    def _check_local(self) -> None:
        """Raise UsageError for options that choose among what a hub has."""
        for option in ("subset", "revision"):
            if getattr(self, option) is not None:
                raise UsageError(
                    f"{option} has no effect: {self.folder} is a folder or file here, not a name on the hub: leave it "
                    "out, and name one configuration's folder by path"
                )

    def _lacks_labels(self, part: str) -> bool:
        return len(self.tables[part]) > 0 and bool((self.numbers(part) == UNLABELLED).all())

    @property
    def roles(self) -> str:
        return f"{super().roles}; images in the column {self.picture_column}, labels in {self.target_column}"

    @cached_property
    def features(self) -> dict[str, Any]:
        """Return the type of each column, of the split that names the classes."""
        part = self._reference
        return dict(self.tables[part].features)

    @cached_property
    def picture_column(self) -> str:
        """Return the column of the pictures; raise UsageError if it is missing, of another type, or not clear."""
        columns = [name for name, feature in self.features.items() if _has_pictures(feature)]
        paths = [name for name, feature in self.features.items() if _kind(feature) == "text"]
        meaning = "pictures (Image, bytes of files, or text that is their paths)"
        return self._column(self.image_column, columns, [*columns, *paths], "image_column", meaning)

    @cached_property
    def target_column(self) -> str:
        """Return the column of the labels; raise UsageError if it is missing, of another type, or not clear."""
        usable = [name for name, feature in self.features.items() if _kind(feature)]
        columns = [name for name in usable if _kind(self.features[name]) == "classes"]
        if len(columns) != 1:
            columns = [name for name in columns or usable if name in LABEL_COLUMNS] or columns
        meaning = "labels (ClassLabel, integers or text)"
        return self._column(self.label_column, columns, usable, "label_column", meaning)

    def _column(
        self, chosen: str | None, usual: Sequence[str], usable: Sequence[str], option: str, meaning: str
    ) -> str:
        types = {name: _type_name(feature) for name, feature in self.features.items()}
        return column_for(option, meaning, types, usual, usable, chosen, self.origin)

    def numbers(self, part: str, names: Sequence[str] | None = None) -> np.ndarray:
        """Return the label of each row (N,): the position of its class, -1 for a row without a label.

        Args:
            part: name of the split.
            names: class names in label order; by default those of the training split.

        Raises UsageError for a class that is none of them.
        """
        column = self.target_column
        kind = _kind(self.features[column])
        if column not in self.tables[part].column_names or kind != _kind(self.tables[part].features[column]):
            raise UsageError(f"the split {part} of {self.origin} has no column {column} of the training split's type")
        values = self.tables[part].select_columns([column]).with_format("arrow")[:][column]
        if kind == "classes":
            return np.asarray(values.fill_null(UNLABELLED).to_numpy(), dtype=np.int64)
        return positions_of(values.to_pylist(), self._own_names if names is None else names, part, self.origin)

    @cached_property
    def _own_names(self) -> list[str]:
        feature = self.features[self.target_column]
        if _kind(feature) == "classes":
            return check_class_names(feature.names, len(feature.names), f"{self.origin}, {self.target_column}")
        column = self.target_column
        values = self.tables[self._reference].select_columns([column]).with_format("arrow")[:][column].unique()
        return class_names_of_values(values.to_pylist())

    def read_part(self, part: Any, names: list[str]) -> Split:
        table = self.tables[part]
        if len(table) == 0:
            raise UsageError(f"the split {part} of {self.origin} is empty: choose another one")
        labels = self.numbers(part, names)
        missing = int((labels < 0).sum())
        if missing:
            raise UsageError(
                f"{counted(missing, 'row')} of {len(table):,} in the split {part} of {self.origin} have no label in "
                f"{self.target_column}: filter them out"
            )
        self._check_classes(part, labels, names)
        return Split(self._pictures(part), torch.tensor(labels))

    def _check_classes(self, part: str, labels: np.ndarray, names: list[str]) -> None:
        """Raise UsageError if a split has other names of classes, or classes that the training split lacks."""
        train = self.layout.train
        if [*map(canonical, names)] != self._own_names:
            raise UsageError(f"{self.origin} has the classes {shorten(self._own_names)}, not {shorten(names)}")
        feature = self.tables[part].features[self.target_column]
        if _kind(feature) == "classes" and [*feature.names] != [*self.features[self.target_column].names]:
            raise UsageError(f"the split {part} of {self.origin} has other classes than the split {train}")
        trained = labels if train in (None, part) else self.numbers(train, names)
        unknown = np.setdiff1d(labels, trained)
        if len(unknown):
            others = [names[label] for label in unknown if label < len(names)]
            raise UsageError(lacks_images(part, others, self.origin))
        absent = np.setdiff1d(np.arange(len(names)), trained)
        if part == train and len(absent):
            listed = shorten([names[label] for label in absent])
            rank_zero_info(
                f"The split {part} of {self.origin} has no image of {counted(len(absent), 'class')}: {listed}"
            )

    def _pictures(self, part: str) -> Pictures:
        from datasets import Image  # slow to import

        column = self.picture_column
        table = self.tables[part]
        feature = table.features.get(column)
        if not _has_pictures(feature) and _kind(feature) != "text":
            raise UsageError(f"the split {part} of {self.origin} has no pictures in a column {column}: choose another")
        encoded = table.select_columns([column]).cast_column(column, Image(decode=False))
        folder = self.folder if self.folder.is_dir() else self.folder.parent
        return Pictures(Rows(encoded, column, f"{self.origin}, {part}", folder), np.arange(len(table)))


def _load_local(path: Path) -> Any:
    """Load a table or tables from a folder or file; raise UsageError if there are none."""
    datasets = _library()
    is_saved = path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not is_saved and path.is_dir() and contains_images(path, below=True):
        raise UsageError(f"{path} contains image files: ImageFolderDataModule reads class folders")
    for state in (*path.glob("state.json"), *path.glob("*/state.json")) if is_saved else ():
        if '"_data_files": []' in read_text(state):
            raise UsageError(f"the split {state.parent.name} of {path} is empty: save the data set without it")
    try:
        if is_saved:
            return datasets.load_from_disk(str(path))
        if path.is_dir():
            return datasets.load_dataset(str(path))
        return datasets.load_dataset(str(path.parent), data_files=path.name)  # by its kind it would ask the network
    except Exception as error:  # of many kinds, depending on the file
        empty = [str(file) for file in (path, *path.rglob("*.parquet")) if _is_empty(file)]
        if empty:
            raise UsageError(f"{shorten(empty)} has no rows: remove it, or write it again") from error
        raise UsageError(f"{path} cannot be read as a data set ({_reason(error)}): check its files") from error


def _is_empty(file: Path) -> bool:
    """Return True for a parquet file without rows."""
    from pyarrow import parquet  # slow to import

    try:
        return bool(parquet.read_metadata(file).num_rows == 0)
    except (OSError, ValueError):  # it is a folder, or of another kind
        return False


def _load_from_hub(name: str, subset: str | None, revision: str | None) -> Any:
    """Load tables from the hub, or those that were downloaded; raise UsageError if that fails."""
    datasets = _library()
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not re-exported

    where = f"path: {name} is neither a folder nor a file here"
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise UsageError(f"{where}, nor a possible name on the hub: check the path") from error
    hindrance = obstacle()
    if hindrance is not None:
        raise UsageError(
            f"{where}, and the hub cannot be asked for it ({hindrance}): check the name and the network; with "
            "HF_HUB_OFFLINE=1 a copy that was downloaded before is used"
        )
    try:
        return datasets.load_dataset(name, subset, revision=revision)
    except Exception as error:  # of the hub's client, of the network, of the files
        raise UsageError(
            f"{where}, and it cannot be loaded from the hub ({_reason(error)}): check path, subset and revision; with "
            "HF_HUB_OFFLINE=1 the hub is not asked"
        ) from error


def _library() -> Any:
    """Return the library ``datasets``; raise UsageError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError("HubDataModule needs datasets: pip install 'hsakd_pl[datasets]'") from error
    return datasets


def _reason(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


def _has_pictures(feature: Any) -> bool:
    """Return True for a column of images, or of bytes of files, with their paths or without."""
    if isinstance(feature, dict):
        return getattr(feature.get("bytes"), "dtype", None) in (*BYTES, "null")  # null if all of them are paths
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", None) in BYTES


def _kind(feature: Any) -> str | None:
    """Return ``classes``, ``integers`` or ``text`` for a column that can have labels, otherwise None."""
    dtype = str(getattr(feature, "dtype", ""))
    if type(feature).__name__ == "ClassLabel":
        return "classes"
    if type(feature).__name__ != "Value":
        return None
    if dtype.startswith(("int", "uint", "bool")):
        return "integers"
    return "text" if dtype in TEXT else None


def _type_name(feature: Any) -> str:
    """Return the type of a column in a word, such as ``Image`` or ``int64``."""
    return feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__
