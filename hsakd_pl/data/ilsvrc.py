"""Find ImageNet (ILSVRC2012) as Kaggle or the organisers distribute it, with the classes of unsorted images."""

import csv
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import NamedTuple

import torch

from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import images_below
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import naming, read_text
from hsakd_pl.files.weights import shorten

KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # folders of train/ and val/ in Kaggle's archive
SOLUTION = "LOC_val_solution.csv"
SYNSETS = "LOC_synset_mapping.txt"
DEVKIT = "ILSVRC2012_devkit_t12"
META = "meta.mat"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
MOST_BYTES = 100_000_000  # of a file of the development kit; meta.mat has 0.2 MB
FIRST_AND_LAST = ("n01440764", "n15075141")  # of the 1000 classes, sorted
WNID = re.compile(r"n\d{8}")


class Answers(NamedTuple):
    """Classes of unsorted images.

    Args:
        wnids: class of each image by the stem of its name.
        origin: file that lists them.
    """

    wnids: Mapping[str, str]
    origin: Path


def image_folder(root: Path) -> Path:
    """Return the folder of ``train/`` and ``val/``: that of Kaggle's archive in ``root`` if it exists, or ``root``."""
    with naming(root):
        for inner in KAGGLE:
            if (root / inner).is_dir():
                return root / inner
    return root


def find_answers(folder: Path) -> Answers | None:
    """Return the classes of the validation images, of the first list in or above a folder; None without a list.

    Lists are ``LOC_val_solution.csv`` and the development kit, as a folder or as an archive. Raises UsageError for one
    that is broken.
    """
    for place in _places(folder):
        solution = place / SOLUTION
        with naming(solution):
            if solution.is_file():
                return Answers(_solution(solution), solution)
        for devkit in (place / DEVKIT, place / f"{DEVKIT}.tar.gz"):
            with naming(devkit):
                is_there = devkit.exists()
            if is_there:
                return Answers(_ground_truth(devkit), devkit)
    return None


def find_words(folder: Path, wnids: Sequence[str]) -> list[str]:
    """Return the names of classes in words; raise UsageError if no list has them.

    The names of all 1000 classes are those of torchvision's weights, one word for each class. Others are those of
    ``LOC_synset_mapping.txt`` or of the development kit in or above the folder, with all synonyms.

    Args:
        folder: folder of the images.
        wnids: classes, sorted.
    """
    from torchvision.models import ResNet18_Weights  # slow to import

    published = [str(name) for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    if len(wnids) == len(published) and (wnids[0], wnids[-1]) == FIRST_AND_LAST:
        return published
    for place in _places(folder):
        mapping = place / SYNSETS
        devkits = [devkit for devkit in (place / DEVKIT, place / f"{DEVKIT}.tar.gz") if devkit.exists()]
        if mapping.is_file():
            lines = [line.partition(" ") for line in read_text(mapping).splitlines()]
            words = {wnid: name.strip() for wnid, _, name in lines}
        elif devkits:
            words = {wnid: name for _, wnid, name in _synsets(devkits[0])}
        else:
            continue
        if all(words.get(wnid) for wnid in wnids):
            return [words[wnid] for wnid in wnids]
    raise UsageError(
        f"names: {folder} has {counted(len(wnids), 'class')}, which are not ImageNet's 1000, and {SYNSETS} with their "
        "names is not next to it: set names to wnid"
    )


def labelled(folder: Path, answers: Answers, wnids: Sequence[str]) -> Split:
    """Return unsorted images with their labels, in the order that class folders would have.

    Args:
        folder: folder of the images.
        answers: classes of the images.
        wnids: classes in label order.

    Raises UsageError with counts if images are missing, or not listed, and if their classes are not ``wnids``.
    """
    [files] = images_below(folder)
    paths = {Path(path).stem: path for path in files}
    missing = answers.wnids.keys() - paths.keys()
    others = paths.keys() - answers.wnids.keys()
    if missing or others or len(paths) != len(files):
        doubled = len(files) - len(paths)
        raise UsageError(
            f"{answers.origin} lists {counted(len(answers.wnids), 'image')}, of which {folder} lacks "
            f"{_some(missing)}, and {folder} contains {_some(others)} that it does not list and {doubled:,} twice: "
            "copy the data set again, completely"
        )
    unknown = set(answers.wnids.values()) - set(wnids)
    if unknown:
        raise UsageError(
            f"{answers.origin} lists images of {counted(len(unknown), 'class')} without a folder in train/, "
            f"{shorten(sorted(unknown))}: copy the data set again, completely"
        )
    others = set(wnids) - set(answers.wnids.values())
    if others:
        raise UsageError(
            f"train/ has {counted(len(others), 'class')} of which {answers.origin} lists no image, "
            f"{shorten(sorted(others))}: move such folders elsewhere"
        )
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    stems = sorted(paths, key=lambda stem: (labels[answers.wnids[stem]], paths[stem]))
    return Split([paths[stem] for stem in stems], torch.tensor([labels[answers.wnids[stem]] for stem in stems]))


def _some(names: Iterable[str]) -> str:
    """Return a number of names, with the first ones."""
    ordered = sorted(names)
    return f"{len(ordered):,} ({shorten(ordered)})" if ordered else "0"


def _places(folder: Path) -> list[Path]:
    """Return the folder of the images and those in which Kaggle's archive and the kit are, which contain it."""
    resolved = folder.absolute()
    return [resolved, *list(resolved.parents)[:3]]


def _solution(path: Path) -> dict[str, str]:
    """Return the class of each image in Kaggle's list, ``ImageId,PredictionString``."""
    wnids: dict[str, str] = {}
    for number, row in enumerate(csv.reader(StringIO(read_text(path))), 1):
        if row[:1] in ([], ["ImageId"]):
            continue
        wnid = row[1].split(" ")[0] if len(row) == 2 else ""
        if not WNID.fullmatch(wnid) or row[0] in wnids:
            raise UsageError(f"{path}, line {number}: it is not an image, a comma and a class such as n01440764, once")
        wnids[row[0]] = wnid
    return wnids


def _ground_truth(devkit: Path) -> dict[str, str]:
    """Return the class of each image in the development kit's list: a number for each image, in order."""
    by_number = {number: wnid for number, wnid, _ in _synsets(devkit)}
    lines = _content(devkit, GROUND_TRUTH).decode("ascii", "replace").split()
    unknown = [line for line in lines if not line.isdecimal() or int(line) not in by_number]
    if unknown:
        raise UsageError(f"{devkit}: {GROUND_TRUTH} has {shorten(unknown)}, which {META} does not list: copy it again")
    return {f"ILSVRC2012_val_{number:08}": by_number[int(line)] for number, line in enumerate(lines, 1)}


def _synsets(devkit: Path) -> list[tuple[int, str, str]]:
    """Return number, class and words of each class that the development kit lists."""
    from scipy.io import loadmat  # slow to import

    content = _content(devkit, META)
    try:
        synsets = loadmat(BytesIO(content), squeeze_me=True)["synsets"]
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["words"], strict=True)
        return [(int(number), str(wnid), str(words)) for number, wnid, words in rows]
    except Exception as error:  # a broken file can make the reader raise anything
        raise UsageError(f"{devkit}: {META} cannot be read ({error}): copy it again") from error


def _content(devkit: Path, name: str) -> bytes:
    """Return a file of the development kit, which is a folder or an archive."""
    with naming(devkit):
        if devkit.is_dir():
            path = devkit / "data" / name
            if not path.is_file() or path.stat().st_size > MOST_BYTES:
                raise UsageError(f"{path} is missing or too large: copy the development kit again")
            return path.read_bytes()
        try:
            with tarfile.open(devkit) as tar:
                for member in tar:
                    file = tar.extractfile(member) if Path(member.name).name == name else None
                    if file is not None and member.size <= MOST_BYTES:
                        return file.read()
        except (EOFError, tarfile.TarError) as error:
            raise UsageError(f"{devkit} cannot be read ({error}): copy it again") from error
    raise UsageError(f"{devkit} has no {name}: copy it again")
