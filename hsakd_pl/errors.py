"""The one error type for mistakes a user can correct, and what may have been meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A wrong file, option or combination; the message names the culprit and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


def require(valid: bool, option: str, value: object, meaning: str) -> None:
    """Raise UsageError, that ``option`` must be ``meaning`` and is ``value``, unless ``valid``."""
    if not valid:
        raise UsageError(f"{option} is {value}: it must be {meaning}")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Hint, for a message, at the names that resemble a mistaken one, or nothing; ``prefix`` stands before each."""
    names = [*known]
    close = get_close_matches(name, names, n=3, cutoff=0.8) or get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(prefix + each for each in close)}? " if close else ""
