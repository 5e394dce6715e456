"""Ctrl-C and SIGTERM end a program wherever it is, with the status that a shell expects."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what an operating system or a scheduler sends


class Interrupted(Exception):  # noqa: N818 it is no error
    """A signal ended the run, with the status that a shell expects: 128 + its number."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} {message}".strip())
        self.status = 128 + signum


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise :class:`Interrupted` wherever the program is, inside of this context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, _stop) for signum in STOPPING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)
