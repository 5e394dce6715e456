"""A bar for what takes longer than a second before there is a run to show."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

SECONDS = 1.0  # before a bar appears
Item = TypeVar("Item")


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Go through ``total`` items; after a second, a bar shows how far, where stderr is a terminal."""
    console, start = Console(stderr=True), time.monotonic()
    hidden = not console.is_interactive or rank_zero_only.rank != 0  # type: ignore[attr-defined]  # set by Lightning
    bar = Progress(console=console, transient=True, disable=hidden)
    task = bar.add_task(what, total=total)
    try:
        for item in items:
            yield item
            bar.advance(task)
            if time.monotonic() > start + SECONDS:
                bar.start()
    finally:
        if not hidden:
            bar.stop()
