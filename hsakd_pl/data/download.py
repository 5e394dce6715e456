"""Downloads that fail with one clear message."""

from collections.abc import Callable
from pathlib import Path

from hsakd_pl.errors import UsageError


def fetch(data_set: str, root: Path, download: Callable[[], object]) -> None:
    """Run torchvision's ``download`` into ``root``; raises UsageError naming the data set if it fails."""
    try:
        download()
    except (OSError, RuntimeError) as error:  # no network, wrong checksum, full disk
        message = f"{data_set} could not be downloaded into {root} ({error}): put a copy there by hand"
        raise UsageError(message) from error
