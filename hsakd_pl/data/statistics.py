"""Mean and standard deviation of images: measured exactly, and stored so that it is done once."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from hsakd_pl.data.augment import check_statistics
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError
from hsakd_pl.files import cache_folder, read_text, replacing

FILE = "hsakd_statistics.json"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def measure(batches: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation of all pixels of uint8 images (B, 3, H, W), in [0, 1].

    Levels are counted and summed as integers, so that the result depends on no order, device or number of processes.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for images in batches:
        channels = images.cpu().transpose(0, 1).flatten(1)
        counts += torch.stack([channel.bincount(minlength=256) for channel in channels])
    mean, std = list[float](), list[float]()
    for channel in counts.tolist():
        pixels = sum(channel)
        first, second = (sum(count * level**power for level, count in enumerate(channel)) for power in (1, 2))
        mean.append(first / (255 * pixels))
        std.append(sqrt(pixels * second - first**2) / (255 * pixels))
    return tuple(mean), tuple(std)


def measure_once(
    root: Path, paths: Sequence[str], geometry: tuple[int, int], batches: Callable[[], ResumableLoader]
) -> Statistics:
    """What :func:`measure` finds of the images that ``geometry`` makes of files in ``root``; once stored, it is read.

    The file lies beside the data, or in the user's cache where those are read-only. It counts while paths, sizes and
    times of the files stay the same. Processes that measure at once find the same; the first one writes.
    """
    key = _fingerprint(root, paths, geometry)
    places = [root / FILE, cache_folder() / FILE]
    for place in places:
        if found := _stored(place, key):
            rank_zero_info(f"Mean and std are those measured before, stored in {place}")
            return found
    loader = batches()
    mean, std = measure(images for images, _ in tracked(loader, len(loader), "Measuring mean and std"))
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning
        entry = {"mean": mean, "std": std, "images": len(paths), "image_size": geometry[0]}
        shown = " and ".join(", ".join(f"{value:.4f}" for value in values) for values in (mean, std))
        where = next((f"in {place}" for place in places if _store(place, key, entry)), "nowhere: no folder is writable")
        rank_zero_info(f"Mean and std of {len(paths):,} training images are {shown}, stored {where}")
    return mean, std


def _fingerprint(root: Path, paths: Sequence[str], geometry: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr(geometry).encode())
    for path in sorted(paths):
        try:
            found = os.stat(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): mend or remove it") from error
        digest.update(os.fsencode(f"{os.path.relpath(path, root)}\0{found.st_size} {found.st_mtime_ns}\n"))
    return digest.hexdigest()


def _stored(place: Path, key: str) -> Statistics | None:
    try:
        entry: Any = _entries(place)[key]
        mean, std = (tuple(map(float, entry[name])) for name in ("mean", "std"))
        check_statistics(str(place), mean, std)
    except (KeyError, TypeError, ValueError):  # spoilt: it is measured again
        return None
    return mean, std


def _store(place: Path, key: str, entry: dict[str, Any]) -> bool:
    try:
        with replacing(place) as file:
            json.dump({**_entries(place), key: entry}, file, indent=1)
            file.write("\n")
    except OSError:
        return False
    return True


def _entries(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(place))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
