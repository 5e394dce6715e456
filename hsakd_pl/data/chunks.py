"""Read samples from the chunks that LitData writes, in any order, as they are stored and without executing anything.

LitData's own reader is made for samples that follow each other: where the next one is in another chunk, it takes many
times as long as this one. It also unpickles what a set contains.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hsakd_pl.data.fetched import Picture, Source
from hsakd_pl.data.store import Store
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming, read_text
from hsakd_pl.files.schema import Fields, Items, Number, Text, parse_json

INDEX_FILE = "index.json"
MOST_BYTES = 10**9  # of an index
WIDTH = 4  # bytes of a uint32
ARROW_MAGIC = b"LDARW01\0"  # the last bytes of a chunk that ends in an Arrow file
# LitData's names of the types of columns, up to a colon
PICTURES = ("bytes", "jpeg", "image", "file", "tifffile", "pil")
LABELS = ("int", "str", "text", "bool")
CHUNK = Fields({"filename": Text(), "chunk_size": Number(1, whole=True)}, required=("filename", "chunk_size"))
FORMAT = Fields({"data_format": Items(Text(), fewest=1), "data_spec": Text()}, required=("data_format", "data_spec"))
CONVERTED = Fields({"classes": Items(Text()), "splits": Items(Text())}, required=("classes", "splits", "facts"))
CONVERTED_KEY = "hsakd_pl"  # of what hsakd convert adds to an index
INDEX = Fields({"chunks": Items(CHUNK), "config": FORMAT, CONVERTED_KEY: CONVERTED}, required=("chunks", "config"))


@dataclass(frozen=True)
class Index:
    """The content of an ``index.json``.

    Args:
        files: names of the chunks.
        counts: number of samples in each.
        columns: type of each column by its name, in the order in which they are stored.
        converted: what ``hsakd convert`` added: the class names, the names of all splits, and facts of this one.
    """

    files: tuple[str, ...]
    counts: tuple[int, ...]
    columns: dict[str, str]
    converted: dict[str, Any] | None = None


def read_index(path: Path, place: str) -> Index:
    """Read an index.

    Args:
        path: file.
        place: where it is from, for errors.

    Raises UsageError for a file that LitData did not write, and for samples that are not stored plainly.
    """
    try:
        content = parse_json(read_text(path, most=MOST_BYTES))
        INDEX.check(content, "")
        chunks, config = content["chunks"], content["config"]
        names = _column_names(config["data_spec"], len(config["data_format"]))
        files = tuple(chunk["filename"] for chunk in chunks)
        if any(Path(name).name != name for name in files):
            raise ValueError("a chunk is in another folder")
    except (KeyError, TypeError, ValueError) as error:  # UsageError is a ValueError
        raise UsageError(f"{place} is not an index of images by LitData ({error}): convert the data again") from error
    for option in ("compression", "encryption"):
        if config.get(option):
            raise UsageError(
                f"{place} has {option} ({config[option]!s:.40}), which is not supported: write it without, since "
                "pictures are compressed already"
            )
    counts = tuple(chunk["chunk_size"] for chunk in chunks)
    columns = dict(zip(names, config["data_format"], strict=True))
    return Index(files, counts, columns, content.get(CONVERTED_KEY))


def _column_names(text: str, count: int) -> list[str]:
    """Return the names of the columns: keys of a dictionary, or positions in a tuple or list."""
    _, root = parse_json(text)
    if len(root["children_spec"]) != count or any(child["children_spec"] for child in root["children_spec"]):
        raise ValueError("its samples are not plain dictionaries or tuples")
    if root["type"] != "builtins.dict":
        return [str(position) for position in range(count)]
    return [str(key) for key in parse_json(root["context"])]


def kind_of(data_format: str) -> str:
    """Return the type of a column without its details, such as ``image`` for ``image:png``."""
    return data_format.partition(":")[0]


@dataclass(frozen=True, eq=False)
class Chunks:
    """Read the columns of a split's samples; workers are handed no samples.

    Args:
        folder: folder of the chunks, or to which they are downloaded.
        index: chunks and columns.
        name: name of the split, for errors.
        store: place that missing chunks are downloaded from, if they are not in the folder.
    """

    folder: Path
    index: Index
    name: str
    store: Store | None = None

    def __len__(self) -> int:
        return sum(self.index.counts)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.index.counts, dtype=np.int64)

    def chunk_of(self, samples: Any) -> np.ndarray:
        """Return the number of the chunk of each sample (N,)."""
        return np.searchsorted(self._ends, samples, side="right")

    def read(self, column: str, samples: Sequence[int]) -> list[Any]:
        """Return the values of a column of samples; raise UsageError for a chunk that is missing or damaged."""
        found: list[Any] = [None] * len(samples)
        chunks = self.chunk_of(samples)
        for chunk in np.unique(chunks).tolist():
            first = int(self._ends[chunk]) - self.index.counts[chunk]
            places = np.flatnonzero(chunks == chunk).tolist()
            with self._opened(chunk) as read:
                values = read(column, [samples[place] - first for place in places])
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found

    def labels(self, column: str) -> list[Any]:
        """Return the label of each sample."""
        labels: list[Any] = []
        for first, last in pairwise([0, *self._ends.tolist()]):
            labels += self.read(column, range(first, last))
        return labels

    def check(self) -> None:
        """Raise UsageError if a chunk in the folder is missing or truncated."""
        for chunk in range(len(self.index.files)):
            with self._opened(chunk):
                pass

    @contextmanager
    def _opened(self, chunk: int) -> Iterator[Callable[[str, list[int]], list[Any]]]:
        """Yield a function that returns the values of a column of samples of a chunk, downloaded if need be."""
        path = self.folder / self.index.files[chunk]
        if self.store is not None:
            self.store.fetch(path)
        try:
            with naming(path), open(path, "rb", buffering=0) as file:
                yield _reader(path, file.fileno(), self.index.counts[chunk], self.index.columns)
        except UsageError:
            raise
        except (struct.error, ValueError) as error:
            raise UsageError(
                f"{path} is truncated or damaged ({error}): copy or convert it again, completely"
            ) from error


def _reader(path: Path, file: int, count: int, columns: dict[str, str]) -> Callable[[str, list[int]], list[Any]]:
    """Return a function that reads an open chunk; raise ValueError unless it is complete.

    A chunk begins with the number of its samples, their positions and the end of the last one. Then come the samples.
    Those that could be rows of a table, and are nothing but bytes, numbers and text, are in an Arrow file in their
    place, if LitData of 2026 wrote them and pyarrow was installed; it is followed by its size and a mark.
    """
    size = os.fstat(file).st_size
    head = WIDTH * (2 + count)  # bytes before the first sample
    [stored] = _numbers(file, 1, 0)
    [end] = _numbers(file, 1, head - WIDTH)
    tail = WIDTH + len(ARROW_MAGIC)
    has_table = end != size and os.pread(file, len(ARROW_MAGIC), size - len(ARROW_MAGIC)) == ARROW_MAGIC
    [length] = _numbers(file, 1, size - tail) if has_table else [0]
    if stored != count or end + (length + tail if has_table else 0) != size:
        raise ValueError(f"it has {size:,} bytes, not as many as it states")
    if has_table and end == head:
        return partial(_rows, path, size - tail - length, length)
    return partial(_values, file, columns)


def _numbers(file: int, count: int, position: int) -> tuple[int, ...]:
    """Return uint32 numbers at a position of an open file."""
    return struct.unpack(f"<{count}I", os.pread(file, count * WIDTH, position))


def _values(file: int, columns: dict[str, str], column: str, samples: list[int]) -> list[Any]:
    """Return the values of a column of samples, each of which begins with the sizes of its columns."""
    number = list(columns).index(column)
    decode = DECODERS.get(kind_of(columns[column]), bytes)
    values = []
    for sample in samples:
        begin, end = _numbers(file, 2, WIDTH * (1 + sample))
        sizes = _numbers(file, len(columns), begin)
        start = begin + WIDTH * len(columns)
        if start + sum(sizes) != end:
            raise ValueError("the sizes of its samples do not add up")
        values.append(decode(os.pread(file, sizes[number], start + sum(sizes[:number]))))
    return values


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "int": partial(int.from_bytes, byteorder="little", signed=True),
    "bool": any,
    "str": bytes.decode,
    "text": bytes.decode,
}


def _rows(path: Path, start: int, length: int, column: str, samples: list[int]) -> list[Any]:
    """Return the values of a column of rows of the Arrow file inside a chunk, which has them in batches of one size."""
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError("this set of LitData is stored with Arrow: pip install pyarrow") from error
    with pyarrow.memory_map(str(path)) as mapped:
        mapped.seek(start)
        table = pyarrow.ipc.open_file(mapped.read_buffer(length))
        size = table.get_batch(0).num_rows
        return [table.get_batch(sample // size).column(column)[sample % size].as_py() for sample in samples]


@dataclass(frozen=True, eq=False)
class StoredPictures:
    """Fetch the pictures of a split.

    Args:
        chunks: samples of the split.
        column: column of the pictures.
    """

    chunks: Chunks
    column: str

    def __call__(self, indices: list[int]) -> list[Source]:
        contents = self.chunks.read(self.column, indices)
        names = [f"{self.chunks.name}[{index}]" for index in indices]
        return [self._source(content, name) for content, name in zip(contents, names, strict=True)]

    def _source(self, content: bytes | None, name: str) -> Source:
        if content is None:
            raise UsageError(f"{name} has no picture in the column {self.column}: leave such samples out")
        is_opened = kind_of(self.chunks.index.columns[self.column]) == "pil"
        return Picture(as_image(content, name) if is_opened else content, name)


def as_image(content: bytes, name: str) -> Image.Image:
    """Return the image that LitData stored as pixels, after its width, height and mode; raise UsageError if broken."""
    try:
        width, height, length = struct.unpack_from("<3I", content)
        start = 3 * WIDTH + length
        mode = content[3 * WIDTH : start].decode("ascii")
        return Image.frombytes(mode, (width, height), content[start:])
    except (struct.error, ValueError) as error:
        raise UsageError(f"cannot decode the image {name} ({error}): replace or remove it") from error
