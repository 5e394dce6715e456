"""Convert any data module's images once to a set of LitData, whose chunks can be read from cloud storage."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.chunks import CONVERTED_KEY, INDEX_FILE, MOST_BYTES, Chunks, StoredPictures, read_index
from hsakd_pl.data.fetched import Picture, Pictures, Source
from hsakd_pl.data.fingerprint import SplitFacts, facts_of, saved_facts
from hsakd_pl.data.imagefolder import PictureDataModule
from hsakd_pl.data.images import header, open_image
from hsakd_pl.data.lit import LABEL_FILE
from hsakd_pl.data.progress import tracked
from hsakd_pl.data.splits import Split, check_split
from hsakd_pl.data.store import library
from hsakd_pl.errors import UsageError, require
from hsakd_pl.files import local_path, naming, read_text
from hsakd_pl.files.lock import sole_writer
from hsakd_pl.files.schema import parse_json
from hsakd_pl.files.text import temporaries, temporary

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of a PNG, by the number of channels
COMPARED = 1000  # pictures of a split that are compared with their source
IMAGE_COLUMN = "image"
LABEL_COLUMN = "label"


def convert(data: ImageDataModule, folder: str | Path, chunk_mib: int = 64) -> dict[str, int]:
    """Write the images of a data module as a set of LitData.

    Files are stored as they are, byte for byte; images in memory as PNG, without loss. Samples keep their order, so
    that batches and held-out images are those of the source. Afterwards the labels, and up to 1,000 pictures of each
    split, are read again and compared with the source. The folder appears once all of that is done.

    Args:
        data: source; only its options that say where the data are have an effect.
        folder: folder to write, which must not exist.
        chunk_mib: size of a chunk in MiB.

    Returns:
        Number of images of each split.

    Raises:
        UsageError: for an image that cannot be opened, an image in memory that is not uint8, and a folder that exists.

    Examples:
        >>> convert(ImageFolderDataModule("photos", image_size=32), "photos-chunks")
        {'train': 8, 'test': 4}
    """
    require(1 <= chunk_mib <= 2048, "chunk_mib", chunk_mib, "from 1 to 2048")
    target = local_path("FOLDER", folder)
    library()
    _check_whole(data)
    names = data.label_names()
    splits = _splits_of(data, names)
    with _new_folder(target) as partial:
        for name, split in splits.items():
            _write(partial / name, split, data.channels, chunk_mib * 2**20)
            facts = _compared(partial / name, split, data.channels, names)
            described = {"classes": names, "splits": [*splits], "facts": saved_facts({name: facts})[name]}
            _add_to_index(partial / name / INDEX_FILE, described)
    return {name: len(split.targets) for name, split in splits.items()}


def _check_whole(data: ImageDataModule) -> None:
    """Raise UsageError for options that choose a part of the images, which the set would have for ever."""
    options = {"train_fraction": 1.0, "val_fraction": 0.0, "unlabelled": None}
    for option, usual in options.items():
        if getattr(data, option) != usual:
            raise UsageError(f"{option}: a data set is converted whole: leave it out, and set it for training instead")


def _splits_of(data: ImageDataModule, names: list[str]) -> dict[str, Split]:
    """Return the whole splits of a data module by their names: train, and val and test if there are any."""
    if isinstance(data, PictureDataModule):
        layout = data.layout
        if not layout.train:
            raise UsageError(data.lacks_train())
        parts = {"train": layout.train, "val": layout.val, "test": layout.test}
        splits = {name: data.read_part(part, names) for name, part in parts.items() if part}
    else:
        splits = {"train": data.read(train=True), "test": data.read(train=False)}
    where = type(data).__name__
    return {name: check_split(split, len(names), f"{where}, {name},", data.channels) for name, split in splits.items()}


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that gets the name ``folder`` at the end, and is deleted after an error; the name must be free."""
    with sole_writer(folder.parent, "name another folder", folder.with_name(f".{folder.name[:50]}.writer")):
        if folder.exists():
            raise UsageError(f"FOLDER: {folder} exists: remove it, or name another folder")
        for abandoned in temporaries(folder):
            shutil.rmtree(abandoned, ignore_errors=True)
        partial = temporary(folder)
        with naming(partial):
            partial.mkdir()
        try:
            yield partial
            with naming(folder):
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, split: Split, channels: int, chunk_bytes: int) -> None:
    """Write a split as chunks with an index, and its labels."""
    labels = split.targets.numpy()
    writer = library().streaming.Cache(str(folder), chunk_bytes=chunk_bytes)
    file = library().File  # what is nothing but bytes and numbers, LitData would store in an Arrow file
    samples = zip(split.images, labels.tolist(), strict=True)
    for index, (image, label) in enumerate(tracked(samples, len(labels), f"Converting {folder.name}")):
        writer[index] = {IMAGE_COLUMN: file(bytes=stored(image, channels)), LABEL_COLUMN: label}
    writer.done()
    writer.merge()
    np.save(folder / LABEL_FILE, labels, allow_pickle=False)


def _add_to_index(file: Path, content: dict[str, Any]) -> None:
    index = parse_json(read_text(file, most=MOST_BYTES))
    file.write_text(json.dumps(index | {CONVERTED_KEY: content}))


def stored(image: Source | Tensor, channels: int) -> bytes:
    """Return the content of an image's file, or of a PNG of an image in memory; raise UsageError if that fails."""
    content = image.content if isinstance(image, Picture) else image
    if isinstance(content, Tensor | Image.Image):
        return _as_png(image, channels)
    with header(image):  # type: ignore[arg-type]  # not a tensor here
        if isinstance(content, bytes):
            return content
        path = Path(content)
        with naming(path):
            return path.read_bytes()


def _as_png(image: Source | Tensor, channels: int) -> bytes:
    pixels = _pixels(image, channels)
    if pixels.dtype != torch.uint8 or channels not in MODES:
        raise UsageError(
            f"images in memory of {pixels.dtype} and {channels} channels cannot be stored without loss: only those of "
            "uint8 with 1 to 4 channels are converted"
        )
    file = io.BytesIO()
    to_pil_image(pixels, MODES[channels]).save(file, "PNG")
    return file.getvalue()


def _pixels(image: Source | Tensor, channels: int) -> Tensor:
    """Return the pixels (C, H, W) of an image as training sees them."""
    if isinstance(image, Tensor):
        return image
    opened = open_image(image, channels=channels)
    return opened if isinstance(opened, Tensor) else pil_to_tensor(opened)


def _compared(folder: Path, split: Split, channels: int, names: list[str]) -> SplitFacts:
    """Return the facts of a split that was written; raise UsageError if it is not its source."""
    chunks = Chunks(folder, read_index(folder / INDEX_FILE, str(folder / INDEX_FILE)), folder.name)
    written = Pictures(StoredPictures(chunks, IMAGE_COLUMN), np.arange(len(chunks)))
    if chunks.labels(LABEL_COLUMN) != split.targets.tolist():
        raise UsageError(f"the labels of {folder.name} were not stored as they are: convert the data again")
    count = len(written)
    for index in sorted({position * count // COMPARED for position in range(COMPARED)}):
        if not _is_equal(written[index], split.images[index], channels):
            raise UsageError(f"the picture {written[index]} was not stored as it is: convert the data again")
    return facts_of(Split(written, split.targets), names)


def _is_equal(written: Source, image: Source | Tensor, channels: int) -> bool:
    content = image.content if isinstance(image, Picture) else image
    if isinstance(content, Tensor | Image.Image):
        return torch.equal(_pixels(written, channels), _pixels(image, channels))
    return written == Picture(stored(image, channels), str(written))
