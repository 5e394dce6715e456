"""Train with two processes that read different data: both end with an error instead of a wrong number."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PROGRAM = """
import os
import sys

os.chdir(f"rank{os.environ['LOCAL_RANK']}")
from hsakd_pl.cli.main import main

main(sys.argv[1:])
"""


def equal(folder: Path) -> None:
    """Change nothing."""


def one_missing(folder: Path) -> None:
    """Remove a picture."""
    (folder / "train/cat/0.png").unlink()


def other_labels(folder: Path) -> None:
    """Exchange the pictures of two classes, with their names."""
    (folder / "train/cat").rename(folder / "train/other")
    (folder / "train/dog").rename(folder / "train/cat")
    (folder / "train/other").rename(folder / "train/dog")


def renamed_class(folder: Path) -> None:
    """Rename a class, in both splits."""
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "emu")


def other_test(folder: Path) -> None:
    """Remove a picture of the test split."""
    (folder / "test/dog/0.png").unlink()


CHANGES: tuple[Callable[[Path], None], ...] = (equal, one_missing, other_labels, renamed_class, other_test)


def attack(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yield the faults; ``count`` has no effect."""
    draw = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(8):
                picture = Image.fromarray(draw.integers(256, size=(16, 16, 3), dtype=np.uint8))
                picture.save(folder / "images" / split / name / f"{number}.png")
    for change in CHANGES:
        place = folder / change.__name__
        for rank in range(2):
            shutil.copytree(folder / "images", place / f"rank{rank}" / "images")
        change(place / "rank1/images")
        (place / "program.py").write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "program.py", *_fit(place)],
            cwd=place,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        printed = done.stdout + done.stderr
        expected_to_train = change is equal
        print(f"{change.__name__}: status {done.returncode}", flush=True)
        if (done.returncode == 0) != expected_to_train:
            yield f"{change.__name__}: status {done.returncode}\n{printed[-3000:]}"
        elif not expected_to_train and "error: " not in printed:
            yield f"{change.__name__}: no error is printed\n{printed[-3000:]}"


def _fit(place: Path) -> list[str]:
    options = {
        "model": "hsakd_pl.BaselineModule",
        "model.network": "resnet8",
        "data": "hsakd_pl.ImageFolderDataModule",
        "data.root": "images",
        "data.image_size": "16",
        "data.batch_size": "4",
        "data.num_workers": "0",
        "trainer.max_epochs": "1",
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": str(place / "run"),
    }
    return ["fit", *(word for name, value in options.items() for word in (f"--{name}", value))]
