"""Mean and standard deviation of images: measured exactly, and stored so that it is done once."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.data.augment import check_statistics
from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text, replacing

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


def fingerprint(root: Path, paths: Sequence[str], *geometry: int) -> str:
    """SHA-256 of where files lie in ``root``, of their sizes and times, and of the geometry they are brought to."""
    digest = hashlib.sha256(repr(geometry).encode())
    for path in sorted(paths):
        try:
            found = os.stat(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): mend or remove it") from error
        digest.update(os.fsencode(f"{os.path.relpath(path, root)}\0{found.st_size} {found.st_mtime_ns}\n"))
    return digest.hexdigest()


def _places(root: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_pl"
    return [root / FILE, cache / FILE]


def find(root: Path, key: str) -> Statistics | None:
    """What was stored under ``key`` beside the data or in the user's cache; None where neither file has it, whole."""
    for place in _places(root):
        entry: Any = _entries(place).get(key)
        try:
            mean, std = (tuple(map(float, entry[name])) for name in ("mean", "std"))
            check_statistics(str(place), mean, std)
        except (KeyError, TypeError, ValueError):
            continue
        rank_zero_info(f"Mean and std are those measured before, stored in {place}")
        return mean, std
    return None


def store(root: Path, key: str, statistics: Statistics, **measured_on: int) -> str:
    """Write them beside the data, or in the user's cache where the data are read-only; say where, or that nowhere."""
    for place in _places(root):
        entry = {"mean": statistics[0], "std": statistics[1], **measured_on}
        try:
            with replacing(place) as file:
                json.dump({**_entries(place), key: entry}, file, indent=1)
                file.write("\n")
        except OSError:
            continue
        return f"stored in {place}"
    return "stored nowhere, since neither the data's folder nor the user's cache can be written"


def _entries(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(place))
    except (OSError, ValueError):  # missing, or spoilt: it is measured again
        return {}
    return found if isinstance(found, dict) else {}
