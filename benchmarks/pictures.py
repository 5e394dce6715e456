"""Measure how pictures get into batches: listing 1.28 million files, and random crops of JPEGs of ImageNet's size.

``listing`` makes a folder of 1,000 classes out of hard links and lists it in turns with a recursive walk by os.scandir
that collects the paths, and torchvision's ImageFolder, each in a process of its own. ``crops`` decodes JPEGs, crops
them by RandomResizedCrop, resizes them to 224 x 224 and flips half of them, in one process with one thread, in turns
with an earlier form of this package and with torchvision. All times are CPU times.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image, features
from torchvision import io
from torchvision.transforms import v2

import hsakd_pl
from benchmarks.machine import processor
from benchmarks.turns import in_turns
from hsakd_pl.data import crops
from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.sources import TransformedBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

SIDE = 224
MOST_LINKS = 32_000  # to one file, below the limit of ext4
OURS = "hsakd_pl"
FULL_START = "hsakd_pl, setup of ImageNetDataModule"
LISTINGS = {  # what is imported, and what is measured
    "os.scandir, paths": (
        "import os",
        """
        def walk(folder):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        yield from walk(entry.path)
                    else:
                        yield entry.path
        listed = list(walk(root / "train"))""",
    ),
    "os.scandir, number": (
        "import os",
        """
        def walk(folder):
            with os.scandir(folder) as entries:
                return sum(walk(entry.path) if entry.is_dir() else 1 for entry in entries)
        listed = walk(root / "train")""",
    ),
    OURS: (
        "from hsakd_pl.data.walk import class_folders, class_names_of",
        """listed = class_folders(root / "train", class_names_of(root / "train"))""",
    ),
    FULL_START: (
        "from hsakd_pl import ImageNetDataModule",
        """
        listed = ImageNetDataModule(root)
        listed.setup("fit")""",
    ),
    "torchvision ImageFolder": (
        "from torchvision.datasets import ImageFolder",
        """listed = ImageFolder(str(root / "train"))""",
    ),
}
PROGRAM = """
import json, sys, textwrap, time
from pathlib import Path

def mebibytes(name):
    # not getrusage, whose peak is at first that of the process that started this one
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 2**10

root = Path(sys.argv[1])
exec(sys.argv[2])
code = compile(textwrap.dedent(sys.argv[3]), "listing", "exec")
before = mebibytes("VmRSS")
start = time.process_time()
exec(code)
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "MiB": mebibytes("VmHWM") - before}))
"""
Numbers = dict[str, list[dict[str, float]]]  # of each variant, one dictionary a round


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks pictures", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("what", choices=("listing", "crops"))
    options.add_argument("--files", type=int, default=1_280_000, help="files that are listed")
    options.add_argument("--classes", type=int, default=1_000, help="class folders that they are in")
    options.add_argument("--jpegs", type=Path, help="folder of the JPEGs that are cropped, such as ImageNet's val/")
    options.add_argument("--images", type=int, default=40, help="JPEGs that are cropped, the first of them")
    options.add_argument("--rounds", type=int, default=5)
    return options


def make_folder(root: Path, files: int, classes: int) -> None:
    """Make ``train/`` with this number of files in class folders, and ``val/`` with one file in each of them."""
    originals = [root / f"{number}.jpg" for number in range(files // MOST_LINKS + 1)]
    for original in originals:
        Image.new("RGB", (8, 8)).save(original)
    for label in range(classes):
        name = f"n{1_440_764 + 37 * label:08}"
        for split, count in (("train", files // classes), ("val", 1)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                original = originals[(label * count + number) // MOST_LINKS]
                os.link(original, f"{folder}/{name}_{7 * number}.JPEG")


def measure_listing(options: argparse.Namespace) -> Numbers:
    """Return seconds and the memory in MiB, at its peak, of each listing."""
    numbers: Numbers = {name: [] for name in LISTINGS}
    with tempfile.TemporaryDirectory(prefix="listing-") as temporary:
        free = os.statvfs(temporary).f_favail
        if 0 < free < 2 * options.classes:
            raise UsageError(f"{temporary} has room for {free:,} files more: set TMPDIR to another folder")
        make_folder(Path(temporary), options.files, options.classes)

        def take(name: str) -> None:
            command = [sys.executable, "-c", PROGRAM, temporary, *LISTINGS[name]]
            finished = subprocess.run(command, capture_output=True, text=True, check=True)
            numbers[name].append(json.loads(finished.stdout.splitlines()[-1]))

        in_turns(options.rounds, [*LISTINGS], take)
    return numbers


def torchvisions() -> list[v2.Transform]:
    """Return the transforms of the measured recipe."""
    return [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]


def recipes(paths: list[str]) -> dict[str, Callable[[int], torch.Tensor]]:
    """Return what makes the batch of an epoch from the paths, for each of the compared recipes."""
    split = Split(paths, torch.arange(len(paths)))
    indices = list(range(len(paths)))
    pillow = v2.Compose([*torchvisions(), v2.PILToTensor()])
    tensors = v2.Compose(torchvisions())
    new = TransformedBatches(split, random_resized_crop(SIDE), SIDE, seed=0)
    old = TransformedBatches(split, pillow, SIDE, seed=0)

    def images_of(batches: TransformedBatches, epoch: int) -> torch.Tensor:
        batch = batches[epoch, indices]
        if isinstance(batch, UsageError):
            raise batch
        return batch[0]

    def by_pillow(path: str) -> torch.Tensor:
        with Image.open(path) as image:
            return pillow(image.convert("RGB"))

    def by_decoder(path: str) -> torch.Tensor:
        return tensors(io.decode_image(io.read_file(path), io.ImageReadMode.RGB))

    return {
        OURS: lambda epoch: images_of(new, epoch),
        "hsakd_pl, whole pictures by Pillow": lambda epoch: images_of(old, epoch),
        "torchvision, Pillow": lambda epoch: torch.stack([by_pillow(path) for path in paths]),
        "torchvision, decode_image": lambda epoch: torch.stack([by_decoder(path) for path in paths]),
    }


def measure_crops(options: argparse.Namespace) -> Numbers:
    """Return milliseconds an image of each recipe."""
    if options.jpegs is None:
        raise UsageError("--jpegs: name a folder of JPEGs, such as ImageNet's val/")
    folder = local_path("--jpegs", options.jpegs)
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    paths = paths[: options.images]
    if not paths:
        raise UsageError(f"--jpegs: {folder} has no JPEGs: name another folder")
    torch.set_num_threads(1)
    compared = recipes(paths)
    numbers: Numbers = {name: [] for name in compared}
    epochs = itertools.count()
    for make_batch in compared.values():
        make_batch(0)

    def take(name: str) -> None:
        epoch = next(epochs) // len(compared)  # the same crops for both forms of this package
        start = time.process_time()
        compared[name](epoch)
        numbers[name].append({"milliseconds": (time.process_time() - start) / len(paths) * 1000})

    in_turns(options.rounds, [*compared], take)
    return numbers


def table(numbers: Numbers) -> list[str]:
    """Return the lines of a table: medians, and the median and quartiles of the first column relative to ours."""
    measured = [*next(iter(numbers.values()))[0]]
    heads = ["", *measured, f"relative to {OURS}", "quartiles"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, rounds in numbers.items():
        ratios = sorted(mine[measured[0]] / ours[measured[0]] for mine, ours in zip(rounds, numbers[OURS], strict=True))
        first, _, third = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        medians = [f"{statistics.median(each[key] for each in rounds):,.2f}" for key in measured]
        cells = [name, *medians, f"{statistics.median(ratios):.2f}", f"{first:.2f} to {third:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def environment() -> dict[str, Any]:
    """Return the processor and the versions that the numbers depend on."""
    return {
        "processor": processor(),
        "hsakd_pl": hsakd_pl.__version__,
        "torch": torch.__version__,
        "Pillow": PIL.__version__,
        "libjpeg-turbo of Pillow": features.version("libjpeg_turbo"),
        "crops are decoded alone": crops.library() is not None,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line names, and print a table."""
    options = parser().parse_args(arguments)
    if min(options.files, options.classes, options.images, options.rounds) < 1:
        raise UsageError("--files, --classes, --images and --rounds must be at least 1")
    measure = {"listing": measure_listing, "crops": measure_crops}[options.what]
    numbers = measure(options)
    print(*table(numbers), "", sep="\n")
    print(*(f"{name}: {value}" for name, value in environment().items()), sep="\n")
