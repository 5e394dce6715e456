"""Mutate files: seeded, deterministic damage that needs no knowledge of the format."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Special:
    """Describe what replaces a file.

    It is a ``folder``, a ``pipe``, nothing (``missing``), a ``link`` to ``target``, or the file followed by ``size``
    bytes that take no space on the disk (``sparse``).
    """

    kind: str
    content: bytes = b""
    target: str = ""
    size: int = 0

    def write(self, path: Path) -> None:
        """Write it to ``path``, which must not exist."""
        if self.kind == "folder":
            path.mkdir()
        elif self.kind == "pipe":
            os.mkfifo(path)
        elif self.kind == "link":
            path.symlink_to(self.target)
        elif self.kind == "sparse":
            path.write_bytes(self.content)
            os.truncate(path, len(self.content) + self.size)


Files = dict[str, bytes | Special]


@dataclass(frozen=True)
class Mutant:
    """Hold files with damage called ``name``.

    ``forged``: checksums are correct or the content was written whole, so that another result is not a fault.
    ``refuse``: the damage is detectable, so that acceptance is a fault.
    """

    name: str
    files: Files
    forged: bool = False
    refuse: bool = False


@dataclass(frozen=True)
class Change:
    """Hold one file's content after a mutation; the fields are those of :class:`Mutant`."""

    name: str
    content: bytes | Special
    forged: bool = False
    refuse: bool = False


Mutation = Callable[[Random, bytes], Change]


def position(rng: Random, data: bytes) -> int:
    """Return an index into ``data``, half of the time in its first or last 256 bytes, where headers are."""
    edge = min(256, len(data))
    start = rng.choice((0, len(data) - edge, None))
    return rng.randrange(len(data)) if start is None else start + rng.randrange(edge)


def block(rng: Random, data: bytes) -> slice:
    """Return a slice of 1 to 300 bytes."""
    start = position(rng, data)
    return slice(start, start + rng.choice((1, 2, 3, 4, 7, 8, 16, 60, 300)))


def replaced(data: bytes, where: slice, by: bytes) -> bytes:
    """Return ``data`` with a slice replaced by ``by``."""
    return data[: where.start] + by + data[where.stop :]


def flip(rng: Random, data: bytes) -> Change:
    """Flip one to four bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[position(rng, data)] ^= 1 << rng.randrange(8)
    return Change("bits flipped", bytes(changed))


def overwrite(rng: Random, data: bytes) -> Change:
    """Replace a slice by random bytes."""
    where = block(rng, data)
    return Change("bytes overwritten", replaced(data, where, rng.randbytes(len(data[where]))))


def truncate(rng: Random, data: bytes) -> Change:
    """Keep the beginning."""
    return Change("truncated", data[: position(rng, data)])


def behead(rng: Random, data: bytes) -> Change:
    """Keep the end."""
    return Change("beginning lost", data[1 + position(rng, data) :])


def insert(rng: Random, data: bytes) -> Change:
    """Insert random or equal bytes."""
    at, count = position(rng, data), rng.choice((1, 2, 4, 8, 100, 4096))
    extra = rng.choice((rng.randbytes(count), bytes(count), b"\xff" * count, b"\n" * count))
    return Change("bytes inserted", data[:at] + extra + data[at:])


def delete(rng: Random, data: bytes) -> Change:
    """Remove a slice."""
    return Change("block deleted", replaced(data, block(rng, data), b""))


def duplicate(rng: Random, data: bytes) -> Change:
    """Repeat a slice."""
    where = block(rng, data)
    return Change("block duplicated", replaced(data, where, data[where] * rng.randint(2, 5)))


def swap(rng: Random, data: bytes) -> Change:
    """Swap two slices of equal length."""
    first, second = sorted((position(rng, data), position(rng, data)))
    size = min(rng.choice((1, 4, 16, 300)), second - first, len(data) - second)
    a, b = data[first : first + size], data[second : second + size]
    return Change("blocks swapped", data[:first] + b + data[first + size : second] + a + data[second + size :])


def extreme(rng: Random, data: bytes) -> Change:
    """Write an extreme number where a length may be."""
    width = rng.choice((1, 2, 4, 8))
    number = (rng.choice(EXTREMES) % 256**width).to_bytes(width, rng.choice(("little", "big")))
    start = position(rng, data)
    return Change("number made extreme", replaced(data, slice(start, start + width), number))


def strange(rng: Random, data: bytes) -> Change:
    """Replace the whole file, or append to it."""
    page = b"<!DOCTYPE html><html><body>404: not found</body></html>\n"
    return rng.choice(
        (
            Change("empty", b"", refuse=False),
            Change("a web page", page),
            Change("random bytes", rng.randbytes(rng.choice((1, 100, 5000)))),
            Change("zeros", bytes(len(data))),
            Change("twice", data + data),
            Change("reversed", data[::-1]),
            Change("followed by a web page", data + page),
        )
    )


def misplaced(rng: Random, data: bytes) -> Change:
    """Replace the file by something that is not a regular file."""
    return rng.choice(
        (
            Change("a folder", Special("folder")),
            Change("missing", Special("missing")),
            Change("a link to itself", Special("link", target="/proc/self/cwd/input/loop")),
            Change("a link to zeros", Special("link", target="/dev/zero")),
            Change("a pipe", Special("pipe")),
            Change("5 GiB follow", Special("sparse", content=data, size=5 * GIBIBYTE)),
        )
    )


BYTES: tuple[Mutation, ...] = (
    flip,
    flip,
    overwrite,
    truncate,
    behead,
    insert,
    delete,
    duplicate,
    swap,
    extreme,
    extreme,
    strange,
)


def anywhere(rng: Random, data: bytes) -> Change:
    """Apply one mutation of bytes, sometimes several; rarely replace the file by something else."""
    if not data or rng.random() < 0.02:
        return misplaced(rng, data)
    change = rng.choice(BYTES)(rng, data)
    while rng.random() < 0.2 and isinstance(change.content, bytes) and change.content:
        further = rng.choice(BYTES)(rng, change.content)
        change = Change(f"{change.name}, {further.name}", further.content)
    return change


def mutated(rng: Random, files: Files, targets: Sequence[str], mutations: Sequence[Mutation]) -> Mutant:
    """Return files of which one, out of ``targets``, went through one of ``mutations``."""
    target = rng.choice(targets)
    original = files[target]
    assert isinstance(original, bytes)
    change = rng.choice(mutations)(rng, original)
    return Mutant(f"{target}: {change.name}", {**files, target: change.content}, change.forged, change.refuse)


def write_files(folder: Path, files: Files) -> None:
    """Write the files below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Special):
            content.write(path)
        else:
            path.write_bytes(content)
