"""Keep the arrays that belong to the batches of one epoch in a file that several processes read and fill.

A file is a header and one block of constant size per batch. A block holds its checksum, the number of its rows, a tag
of their type, and the rows. The checksum covers the key of the file, the number of the block, what was asked and the
rows: a block that is damaged, half written, copied from elsewhere or the answer to another question is not valid.
Processes therefore write without locks: whoever reads a block while it is written finds it missing.

Blocks are read and written by position. A memory map would read the same pages, but a file that is cut off, or a full
disk, ends a process that has mapped it.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hsakd_pl.errors import UsageError
from hsakd_pl.files.lock import in_turn
from hsakd_pl.files.system import warn_once
from hsakd_pl.files.text import naming, replacing

MAGIC = b"hsakd answers 1\n"
KEY_BYTES = 32
HEADER = struct.Struct(f"<{len(MAGIC)}s{KEY_BYTES}s4I")
CHECKSUM_BYTES = 16
BLOCK_HEADER = struct.Struct(f"<{CHECKSUM_BYTES}s2I")


class Layout(NamedTuple):
    """The size of a file: ``blocks`` of at most ``rows`` rows (columns,) of a little-endian or structured ``dtype``."""

    blocks: int
    rows: int
    columns: int
    dtype: np.dtype

    @property
    def block_bytes(self) -> int:
        """Return the size of a block."""
        return BLOCK_HEADER.size + self.rows * self.columns * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Return the size of a file with all of its blocks."""
        return HEADER.size + self.blocks * self.block_bytes


class Answer(NamedTuple):
    """The rows (B, columns) of a batch, and the tag that they were written with."""

    rows: NDArray[Any]
    tag: int


class AnswerFile:
    """A file of answers, open for reading and writing; it is created if it is missing.

    A file of another key, and one that was cut off, is told in the log and filled anew.

    Args:
        path: path of the file.
        key: 32 bytes that identify what the answers depend on.
        layout: size of the file.

    Raises UsageError if the file cannot be opened.
    """

    def __init__(self, path: Path, key: bytes, layout: Layout) -> None:
        self.path = path
        self.key = key
        self.layout = layout
        with in_turn(path.with_name(f".{path.name}.writer")), naming(path):
            self._create_or_check()
            self.descriptor = os.open(path, os.O_RDWR)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def read(self, block: int, question: bytes) -> Answer | None:
        """Return the answer of a block to a question; None if it has none that is valid."""
        if block >= self.layout.blocks:
            return None
        content = os.pread(self.descriptor, self.layout.block_bytes, self._position(block))
        if len(content) < BLOCK_HEADER.size or not any(content[:CHECKSUM_BYTES]):
            return None
        checksum, rows, tag = BLOCK_HEADER.unpack_from(content)
        end = BLOCK_HEADER.size + rows * self.layout.columns * self.layout.dtype.itemsize
        if end > len(content) or checksum != self._checksum(block, question, content[CHECKSUM_BYTES:end]):
            warn_once(f"{self.path}: some answers are damaged or belong to other images: they are asked anew")
            return None
        values = np.frombuffer(content[BLOCK_HEADER.size : end], self.layout.dtype)
        return Answer(values.reshape(rows, self.layout.columns), tag)

    def write(self, block: int, question: bytes, answer: Answer) -> None:
        """Store an answer; rows that do not fit the layout are not kept. Raises OSError as the system does."""
        rows = len(answer.rows)
        if block >= self.layout.blocks or rows > self.layout.rows:
            return
        content = struct.pack("<2I", rows, answer.tag) + answer.rows.astype(self.layout.dtype).tobytes()
        content = self._checksum(block, question, content) + content
        written = 0
        while written < len(content):  # a full disk writes a part before it raises
            written += os.pwrite(self.descriptor, content[written:], self._position(block) + written)

    def _position(self, block: int) -> int:
        return HEADER.size + block * self.layout.block_bytes

    def _checksum(self, block: int, question: bytes, content: bytes) -> bytes:
        digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES, key=self.key)
        digest.update(struct.pack("<2I", block, len(question)) + question)
        digest.update(content)
        return digest.digest()

    def _create_or_check(self) -> None:
        """Create the file unless there is one of the same key and layout; say what is wrong with one that is there."""
        layout = self.layout
        header = HEADER.pack(MAGIC, self.key, layout.blocks, layout.rows, layout.columns, layout.dtype.itemsize)
        if self.path.exists():
            if not self.path.is_file():
                raise UsageError(f"{self.path} is not a file: remove it")
            with open(self.path, "rb") as file:
                is_same = file.read(HEADER.size) == header
            size = self.path.stat().st_size
            if is_same and size == layout.file_bytes:
                return
            if is_same:
                warn_once(f"{self.path} has {size:,} of {layout.file_bytes:,} bytes: what is missing is asked anew")
                os.truncate(self.path, layout.file_bytes)
                return
            warn_once(f"{self.path} does not hold the answers that its name says: it is replaced, all are asked anew")
        with replacing(self.path, "wb") as file:
            file.write(header)
            file.truncate(layout.file_bytes)  # sparse: a block takes disk space once it is written


def allocated_bytes(folder: Path) -> int:
    """Return the disk space of all files below a folder, 0 if it does not exist."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # another process has just renamed it
            continue
        total += status.st_blocks * 512  # POSIX's unit of st_blocks
    return total
