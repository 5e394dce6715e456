"""Identify the data of a split: the names of its classes, its number of images, its labels and its pictures."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
import torch.distributed
from torch import Tensor

from hsakd_pl.data.fetched import Picture, Pictures, Source
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming

MOST_BYTES = 2**30  # of a split in memory: larger ones are sampled
MOST_FILES = 1000  # of a split on disk: larger ones are sampled, since each file takes milliseconds on a network disk
MOST_SIZES = 100_000  # of a split on disk: of this many files at least the size is compared
FILE_BYTES = 2**20  # of a file: of larger ones blocks are read
BLOCK_BYTES = 2**16
DIGITS = 12  # hexadecimal digits of a digest


@dataclass(frozen=True)
class SplitFacts:
    """Facts that identify the content of a whole split, before a part of it is chosen or held out.

    Two splits with equal facts are the same data, wherever their files are.

    Args:
        classes: number of classes.
        names: digest of the class names in label order.
        images: number of images.
        labels: digest of all labels in their order.
        pictures: digest of the pairs of label and picture, whatever their order: pixels of tensors, the content of
            files, of files above 1 MiB 17 blocks at even distances. Of splits above 1 GiB or 1,000 files, it covers a
            sample at even distances, and the sizes of up to 100,000 files.
    """

    classes: int
    names: str
    images: int
    labels: str
    pictures: str

    @property
    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that identify the split."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())


Facts = Mapping[str, SplitFacts]  # by the name of a split
MEANINGS = {
    "classes": "number of classes",
    "names": "class names",
    "images": "number of images",
    "labels": "labels",
    "pictures": "pictures",
}


def facts_of(split: Split, class_names: Sequence[str]) -> SplitFacts:
    """Return the facts of a split; raises UsageError naming a file that cannot be read."""
    labels = np.ascontiguousarray(split.targets.cpu().numpy().astype("<i8", copy=False))
    digests = []
    for index, content in _sampled(split.images):
        content.update(labels[index].tobytes())
        digests.append(content.digest())
    # a sum does not depend on the order of the images
    combined = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
    return SplitFacts(
        classes=len(class_names),
        names=_digest(json.dumps(list(class_names)).encode("utf-8", "surrogatepass")),
        images=len(labels),
        labels=_digest(labels.data),
        pictures=_digest(combined.tobytes()),
    )


def difference(before: SplitFacts, now: SplitFacts) -> str:
    """Return in which facts two splits differ, such as ``number of images (100, now 101)``; empty if in none."""
    phrases = []
    for name, meaning in MEANINGS.items():
        old = getattr(before, name)
        new = getattr(now, name)
        if old != new:
            phrases.append(f"{meaning} ({old}, now {new})" if isinstance(old, int) else meaning)
    return ", ".join(phrases)


def saved_facts(facts: Facts) -> dict[str, dict[str, Any]]:
    """Return the facts of several splits as plain data, each with its fingerprint."""
    return {name: asdict(split) | {"fingerprint": split.fingerprint} for name, split in sorted(facts.items())}


def read_facts(content: Any, origin: str) -> dict[str, SplitFacts]:
    """Read the result of :func:`saved_facts`; raises UsageError naming ``origin`` if it is anything else."""
    try:
        return {str(name): _read_split(split) for name, split in content.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{origin} does not identify its data ({error}): resume from another one") from error


def _read_split(content: Any) -> SplitFacts:
    return SplitFacts(
        classes=int(content["classes"]),
        names=str(content["names"]),
        images=int(content["images"]),
        labels=str(content["labels"]),
        pictures=str(content["pictures"]),
    )


def check_unchanged(before: Facts, now: Facts, where: str) -> None:
    """Raise UsageError if a split that was read before has other content now.

    Args:
        before: facts of the run that is resumed.
        now: facts of the same splits.
        where: the data module and its folder, for the error.
    """
    for split in sorted(before.keys() & now.keys()):
        changed = difference(before[split], now[split])
        if changed:
            raise UsageError(
                f"{where}: the {split} split is not the one that the resumed run began with, it differs in {changed}: "
                "restore the data, or start a new run in another folder"
            )


def check_equal_on_all_processes(facts: Facts, where: str) -> None:
    """Raise UsageError in all processes of a run if their splits differ in content."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    facts_by_rank: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(facts_by_rank, dict(facts))
    first, *others = facts_by_rank
    for rank, other in enumerate(others, 1):
        for split in sorted(first.keys() & other.keys()):
            changed = difference(first[split], other[split])
            if changed:
                raise UsageError(
                    f"{where}: the {split} split of process {rank} differs from that of process 0 in "
                    f"{changed.replace(', now ', ' and ')}: give all processes the same data"
                )


def _sampled(images: Tensor | list[str] | Pictures) -> Iterator[tuple[int, Any]]:
    """Yield the index and the hash of the content of the images that are sampled."""
    if isinstance(images, Tensor):
        pixels = images.detach().cpu()
        most = max(1, MOST_BYTES // max(1, pixels[0].numel() * pixels.element_size()))
        for index in _even_indices(len(pixels), most):
            yield index, hashlib.sha256(_as_bytes(pixels[index]))
    elif isinstance(images, Pictures):
        for index in _even_indices(len(images), MOST_FILES):
            yield index, _source_digest(images[index])
    else:
        sampled = set(_even_indices(len(images), MOST_FILES))
        for index in sorted(sampled.union(_even_indices(len(images), MOST_SIZES))):
            yield index, _file_digest(images[index], index in sampled)


def _as_bytes(picture: Tensor) -> memoryview:
    """Return the bytes of a picture, also of types that NumPy lacks, such as bfloat16."""
    return picture.contiguous().flatten().view(torch.uint8).numpy().data


def _file_digest(path: str, has_content: bool) -> Any:
    """Return the hash of the size and content of a file; of nothing for one whose opening as a picture raises."""
    digest = hashlib.sha256()
    with naming(path):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return digest
        if not stat.S_ISREG(status.st_mode):
            return digest
        digest.update(f"{status.st_size} ".encode())
        if has_content:
            with open(path, "rb") as file:
                _update(digest, file, status.st_size)
    return digest


def _source_digest(source: Source) -> Any:
    """Return the hash of a picture that was fetched: of a file's content that of the file, otherwise of its pixels."""
    if not isinstance(source, Picture):
        return _file_digest(str(source), has_content=True)
    if isinstance(source.content, bytes):
        digest = hashlib.sha256(f"{len(source.content)} ".encode())
        _update(digest, BytesIO(source.content), len(source.content))
        return digest
    image = source.content
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes())


def _update(digest: Any, file: IO[bytes], size: int) -> None:
    """Hash the content of a file, of a large one blocks of it."""
    if size <= FILE_BYTES:
        digest.update(file.read())
        return
    for start in _even_indices(size - BLOCK_BYTES + 1, FILE_BYTES // BLOCK_BYTES):
        file.seek(start)
        digest.update(file.read(BLOCK_BYTES))
    file.seek(-BLOCK_BYTES, 2)
    digest.update(file.read())


def _even_indices(count: int, most: int) -> Iterator[int]:
    """Yield at most ``most`` of ``count`` indices at even distances."""
    num_indices = min(count, most)
    for position in range(num_indices):
        yield position * count // num_indices


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
