"""Measure mean and standard deviation of images exactly, and store them so that this happens once."""

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
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import cache_folder, naming, read_text, replacing
from hsakd_pl.files.lock import in_turn
from hsakd_pl.files.schema import parse_json

FILE = "hsakd_statistics.json"
MAX_LEVEL = 255  # of uint8 pixels
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def measure(batches: Iterable[Tensor], channels: int = 3) -> Statistics:
    """Return mean and standard deviation per channel, in [0, 1], of all pixels of uint8 images (B, channels, H, W).

    Levels are counted and summed as integers, so that the result does not depend on the order of the images, the device
    or the number of processes.
    """
    histograms = torch.zeros(channels, MAX_LEVEL + 1, dtype=torch.int64)
    for images in batches:
        levels = images.cpu().transpose(0, 1).flatten(1)
        histograms += torch.stack([channel.bincount(minlength=MAX_LEVEL + 1) for channel in levels])
    mean = []
    std = []
    for histogram in histograms.tolist():
        num_pixels = sum(histogram)
        total = sum(count * level for level, count in enumerate(histogram))
        total_of_squares = sum(count * level**2 for level, count in enumerate(histogram))
        mean.append(total / (MAX_LEVEL * num_pixels))
        std.append(sqrt(num_pixels * total_of_squares - total**2) / (MAX_LEVEL * num_pixels))
    return tuple(mean), tuple(std)


def check_channels(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise UsageError, with numbers to use instead, if a channel has one level in all images, but others differ."""
    names = ("red", "green", "blue") if len(std) == 3 else range(1, len(std) + 1)
    constant = [str(name) for name, deviation in zip(names, std, strict=True) if deviation == 0]
    if not constant or not any(std):
        return
    means = [round(value, 4) for value in mean]
    stds = [round(deviation, 4) or 1.0 for deviation in std]
    raise UsageError(
        f"mean: auto finds no std for the channel {' and '.join(constant)}, which is constant in all training images: "
        f"set --data.init_args.mean '{means}' --data.init_args.std '{stds}'"
    )


def measure_once(
    root: Path,
    paths: Sequence[str],
    geometry: tuple[int, int],
    make_loader: Callable[[], ResumableLoader],
    channels: int = 3,
) -> Statistics:
    """Return the result of :func:`measure` for a data set, from a file if it was measured before.

    The file is in ``root``, or in the user's cache folder if ``root`` is read-only. It is valid as long as the paths,
    sizes and modification times of the images stay the same. Processes that measure at the same time get equal results,
    and the first one writes the file.

    Args:
        root: folder of the data set.
        paths: paths of the images.
        geometry: side of the images, and short side that they are resized to before they are cut.
        make_loader: makes the loader of the images.
        channels: number of channels of the images.
    """
    key = _fingerprint(root, paths, geometry if channels == 3 else (*geometry, channels))
    cache = cache_folder()
    files = [root / FILE, *([] if cache is None else [cache / FILE])]
    for file in files:
        statistics = _stored(file, key, channels)
        if statistics is not None:
            rank_zero_info(f"Mean and std were measured before and are stored in {file}")
            return statistics
    loader = make_loader()
    batches = tracked(loader, len(loader), "Measuring mean and std")
    mean, std = measure((images for images, _ in batches), channels)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning
        image_size, _ = geometry
        entry = {"mean": mean, "std": std, "images": len(paths), "image_size": image_size}
        written = next((file for file in files if _store(file, key, entry)), None)
        where = f"in {written}" if written else "nowhere: no folder is writable"
        numbers = f"{_rounded(mean)} and {_rounded(std)}"
        rank_zero_info(f"Mean and std of {counted(len(paths), 'training image')} are {numbers}, stored {where}")
    return mean, std


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _fingerprint(root: Path, paths: Sequence[str], geometry: tuple[int, ...]) -> str:
    digest = hashlib.sha256(repr(geometry).encode())
    for path in sorted(paths):
        with naming(path):
            status = os.stat(path)
        relative = os.path.relpath(path, root)
        digest.update(os.fsencode(f"{relative}\0{status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _stored(file: Path, key: str, channels: int) -> Statistics | None:
    try:
        entry: Any = _entries(file)[key]
        mean = tuple(map(float, entry["mean"]))
        std = tuple(map(float, entry["std"]))
        check_statistics(str(file), mean, std, channels)
    except (KeyError, TypeError, ValueError):  # missing or corrupt: they are measured again
        return None
    return mean, std


def _store(file: Path, key: str, entry: dict[str, Any]) -> bool:
    """Add an entry to the file; return False if it is not writable."""
    try:
        with in_turn(file.with_name(f".{FILE}.writer")), replacing(file) as stream:
            json.dump(_entries(file) | {key: entry}, stream, indent=1)
            stream.write("\n")
    except UsageError:
        return False
    return True


def _entries(file: Path) -> dict[str, Any]:
    """Return all entries of the file; an empty dictionary if it is missing or corrupt."""
    try:
        entries = parse_json(read_text(file))
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}
