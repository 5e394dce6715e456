"""A progress bar for work that takes longer than a second and is not part of a run."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

SECONDS_BEFORE_BAR = 1.0
Item = TypeVar("Item")


def tracked(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items, and show a progress bar after one second if stderr is a terminal.

    Args:
        items: items to yield.
        total: number of items.
        description: text before the bar.
    """
    console = Console(stderr=True)
    start = time.monotonic()
    hidden = not console.is_interactive or rank_zero_only.rank != 0  # type: ignore[attr-defined]  # set by Lightning
    bar = Progress(console=console, transient=True, disable=hidden)
    task = bar.add_task(description, total=total)
    try:
        for item in items:
            yield item
            bar.advance(task)
            if time.monotonic() > start + SECONDS_BEFORE_BAR:
                bar.start()
    finally:
        if not hidden:
            bar.stop()
