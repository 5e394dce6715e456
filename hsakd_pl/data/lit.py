"""Sets of LitData: chunks of samples in a folder or in cloud storage."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.data.chunks import INDEX_FILE, LABELS, PICTURES, Chunks, StoredPictures, kind_of, read_index
from hsakd_pl.data.fetched import Pictures
from hsakd_pl.data.fingerprint import SplitFacts, difference, facts_of, read_facts
from hsakd_pl.data.splits import Split, check_class_names
from hsakd_pl.data.store import Store, is_remote
from hsakd_pl.data.tables import (
    LABEL_COLUMNS,
    TableDataModule,
    TableOptions,
    class_names_of_values,
    column_for,
    lacks_images,
    positions_of,
)
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.files import cache_folder, local_path, naming
from hsakd_pl.files.text import is_temporary
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import Unpack

LABEL_FILE = "labels.npy"  # next to an index by hsakd convert, so that labels are known without reading chunks


class LitDataModule(TableDataModule):
    """Load a set of LitData (``pip install 'hsakd_pl[litdata]'``), such as ``hsakd convert`` writes of any other data.

    Samples are read from the chunks by their index, so that batches are those of all other data: they depend on (seed,
    epoch, index) alone, and a run resumes at the exact next batch with any number of workers. Pictures are decoded as
    those of class folders are. In a folder, neither LitData nor a copy of the chunks is needed. Of a URL, chunks are
    downloaded to a cache when they are first used, and kept.

    Args:
        root: folder in which ``path`` is looked for, after the working folder.
        path: folder, or URL such as ``s3://bucket/photos``, with a set of LitData in ``train/`` and one or both of
            ``val/`` and ``test/``, or one set that is divided by ``val_fraction``.
        image_column: column of the pictures: files (types ``bytes``, ``jpeg``, ``image``, ``file``) or pixels
            (``pil``); by default the only one.
        label_column: column of the labels (``int``, ``str`` or ``bool``); by default the only one, or that is called
            ``label``.
        mixed_chunks: 0 shuffles all training images, as of all other data. Otherwise the chunks are visited in random
            order, and the images of this many are mixed: the first epoch then downloads a set on cloud storage chunk
            after chunk.
        cache_dir: folder that chunks are downloaded to; by default in the user's cache.
        storage_options: options of LitData's client for the cloud storage, such as credentials.

    Other arguments: :class:`TableDataModule`, :class:`PictureDataModule`, :class:`ImageDataModule`.

    Raises:
        UsageError: for negative ``mixed_chunks``, for a set that is missing or damaged, and if LitData is not
            installed.

    Examples:
        >>> convert(ImageFolderDataModule("photos", image_size=32), "photos-chunks")
        {'train': 8, 'test': 4}
        >>> data = LitDataModule(path="photos-chunks", image_size=32, batch_size=4, num_workers=0)
        >>> data.setup("fit")
        >>> data.class_names
        ['cat', 'dog']
    """

    def __init__(
        self,
        root: str | Path = "data",
        *,
        path: str | Path,
        mixed_chunks: int = 0,
        cache_dir: str | Path | None = None,
        storage_options: dict[str, Any] | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        super().__init__(root, path=path, **options)
        require(mixed_chunks >= 0, "mixed_chunks", mixed_chunks, "at least 0")
        self.mixed_chunks = mixed_chunks
        self.cache_dir = None if cache_dir is None else local_path("cache_dir", cache_dir)
        self.storage_options = storage_options or {}

    @property
    def is_local(self) -> bool:
        return not is_remote(self.path) and super().is_local

    @cached_property
    def tables(self) -> dict[str, Chunks]:
        """Return the samples of each split by its name."""
        if not is_remote(self.path):
            return _open_folder(self.folder, self.origin)
        named = [name for name in (self.train_split, self.val_split, self.test_split) if name is not None]
        return _open_remote(str(self.path), self.storage_options, self.cache_dir, named)

    def _column(self, part: str, chosen: str | None, kinds: Sequence[str], option: str, meaning: str) -> str:
        columns = self.tables[part].index.columns
        usable = [name for name, kind in columns.items() if kind_of(kind) in kinds]
        usual = usable
        if option == "label_column" and len(usable) > 1:
            usual = [name for name in usable if name in LABEL_COLUMNS] or usable
        return column_for(option, meaning, columns, usual, usable, chosen, f"the split {part} of {self.origin}")

    def picture_column(self, part: str) -> str:
        """Return the column of a split's pictures; raise UsageError if it is missing, of another type, or not clear."""
        return self._column(part, self.image_column, PICTURES, "image_column", f"pictures ({', '.join(PICTURES)})")

    def target_column(self, part: str) -> str:
        """Return the column of a split's labels; raise UsageError if it is missing, of another type, or not clear."""
        return self._column(part, self.label_column, LABELS, "label_column", f"labels ({', '.join(LABELS)})")

    @cached_property
    def _values(self) -> dict[str, list[Any]]:
        return {}  # labels as they are stored, by split

    def values(self, part: str) -> list[Any]:
        """Return the labels of a split as they are stored, read once; raise UsageError if it is empty."""
        if part not in self._values:
            chunks = self.tables[part]
            if len(chunks) == 0:
                raise UsageError(f"the split {part} of {self.origin} is empty: choose another one, or convert it again")
            is_converted = chunks.index.converted is not None
            self._values[part] = _stored_labels(chunks) if is_converted else chunks.labels(self.target_column(part))
        return self._values[part]

    @cached_property
    def _converted_names(self) -> list[str] | None:
        """Return the class names by ``hsakd convert``; None for other sets. Raises UsageError if splits differ."""
        converted = [table.index.converted for table in self.tables.values()]
        found = [None if content is None else content["classes"] for content in converted]
        if any(content != found[0] for content in found):
            raise UsageError(
                f"the splits {', '.join(self.tables)} of {self.origin} are of different sets: convert again"
            )
        return found[0]

    @cached_property
    def _own_names(self) -> list[str]:
        names = self._converted_names
        if names is not None:
            return check_class_names(names, len(names), f"{self.origin}, {INDEX_FILE}")
        return class_names_of_values(self.values(self._reference))

    def read_part(self, part: Any, names: list[str]) -> Split:
        if names != self._own_names:
            raise UsageError(f"{self.origin} has the classes {shorten(self._own_names)}, not {shorten(names)}")
        split = Split(self._pictures(part), self._labels(part, names))
        self._check_converted(part, split)
        return split

    def _pictures(self, part: str) -> Pictures:
        chunks = self.tables[part]
        if chunks.store is None:
            chunks.check()
        column = self.picture_column(part)
        if kind_of(chunks.index.columns[column]) == "jpeg":
            rank_zero_info(
                f"LitData may have encoded pictures of {self.origin}, {part}, anew with quality 75, since they were "
                "opened before they were stored: hsakd convert stores files as they are"
            )
        return Pictures(StoredPictures(chunks, column), np.arange(len(chunks)))

    def _labels(self, part: str, names: list[str]) -> Tensor:
        """Return the labels (N,) of a split; raise UsageError for those that no class has."""
        train = self.layout.train
        positions = names if self._converted_names is None else [str(number) for number in range(len(names))]
        labels = positions_of(self.values(part), positions, part, self.origin)
        missing = int((labels < 0).sum())
        if missing:
            raise UsageError(f"{counted(missing, 'image')} in the split {part} of {self.origin} have no label")
        if train not in (None, part):
            absent = np.setdiff1d(labels, positions_of(self.values(train), positions, train, self.origin))
            if len(absent):
                raise UsageError(lacks_images(part, [names[label] for label in absent], self.origin))
        return torch.from_numpy(labels)

    def _check_converted(self, part: str, split: Split) -> None:
        """Raise UsageError if a split in a folder is not the one that was converted."""
        chunks = self.tables[part]
        if chunks.index.converted is not None and chunks.store is None:
            changed = difference(_facts_of_conversion(chunks), facts_of(split, self._own_names))
            if changed:
                raise UsageError(
                    f"the split {part} of {self.origin} is not the one that was converted, it differs in {changed}: "
                    "convert it again"
                )

    def identify(self, split: Split) -> SplitFacts:
        """Return what identifies a split; the pictures of a converted one in cloud storage are not read for it."""
        images: Any = split.images
        chunks = images.fetch.chunks
        if chunks.index.converted is None or chunks.store is None:
            return super().identify(split)
        facts = super().identify(split._replace(images=images.take([])))
        return replace(facts, pictures=_facts_of_conversion(chunks).pictures)

    def chunks_of(self, split: Split) -> Tensor:
        """Return the number of the chunk of each sample (N,)."""
        images: Any = split.images
        return torch.from_numpy(images.fetch.chunks.chunk_of(images.indices))


def _facts_of_conversion(chunks: Chunks) -> SplitFacts:
    """Return the facts of a split that ``hsakd convert`` stored; raise UsageError if they are damaged."""
    converted: Any = chunks.index.converted
    return read_facts({"split": converted["facts"]}, f"{chunks.name}, {INDEX_FILE},")["split"]


def _stored_labels(chunks: Chunks) -> list[int]:
    """Return the labels that ``hsakd convert`` stored next to the index; raise UsageError if they do not fit."""
    file = chunks.folder / LABEL_FILE
    if chunks.store is not None:
        chunks.store.fetch(file)
    try:
        with naming(file):
            labels = np.load(file, allow_pickle=False)
        if labels.shape != (len(chunks),) or labels.dtype != np.int64:
            raise ValueError(f"it has {labels.dtype} {labels.shape}")
    except (EOFError, ValueError) as error:  # UsageError is a ValueError
        raise UsageError(f"{file} has not the labels of {len(chunks):,} images ({error}): convert again") from error
    return labels.tolist()


def _open_folder(folder: Path, origin: str) -> dict[str, Chunks]:
    """Open the splits of a folder; raise UsageError if there are none."""
    if is_temporary(folder):
        raise UsageError(f"path: {origin} is what an interrupted conversion left: convert the data again")
    with naming(folder):
        if not folder.is_dir():
            raise UsageError(f"path: {origin} is not a folder, or does not exist: check the path")
        folders = [folder] if (folder / INDEX_FILE).is_file() else sorted(folder.iterdir())
    tables: dict[str, Chunks] = {}
    for path in folders:
        name = "train" if path is folder else path.name
        if (path / INDEX_FILE).is_file():
            index = read_index(path / INDEX_FILE, str(path / INDEX_FILE))
            tables[name] = Chunks(path, index, f"{origin}, {name}")
        elif path.is_dir() and any(path.glob("chunk-*.bin")):
            raise UsageError(f"{path} has chunks, but no {INDEX_FILE}: its conversion was interrupted, repeat it")
    if not tables:
        raise UsageError(
            f"path: {origin} is not a set of LitData, neither it nor a folder in it has an {INDEX_FILE}: hsakd convert "
            "writes one, and ImageFolderDataModule reads class folders"
        )
    return tables


def _open_remote(url: str, options: dict[str, Any], cache: Path | None, named: list[str]) -> dict[str, Chunks]:
    """Open the named splits of a URL; without names those that ``hsakd convert`` lists, or train and test."""
    cache = cache or cache_folder()
    if cache is None:
        raise UsageError("cache_dir: no home folder was found for the cache: set cache_dir to a folder")
    store = Store(url, options)
    names = named or ["train"]
    first = _open_split(store.folder(names[0]), cache, f"{url}, {names[0]}")
    if not named:
        names = ["train", "test"] if first.index.converted is None else first.index.converted["splits"]
    others = {name: _open_split(store.folder(name), cache, f"{url}, {name}") for name in names[1:]}
    return {names[0]: first, **others}


def _open_split(store: Store, cache: Path, name: str) -> Chunks:
    """Download the index of a split, and return its samples, whose chunks are cached in a folder for this index."""
    with TemporaryDirectory() as folder:
        file = store.impatient().fetch(Path(folder, INDEX_FILE))
        index = read_index(file, f"{store.url}/{INDEX_FILE}")
        digest = hashlib.sha256(json.dumps([store.url, file.read_text()]).encode()).hexdigest()
    chunks = cache / "chunks" / digest[:16]
    with naming(chunks):
        chunks.mkdir(parents=True, exist_ok=True)
    return Chunks(chunks, index, name, store)
