"""Checks of options that commands share: repeated names, seeds, and options that another one replaces."""

from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Sequence

from hsakd_pl.errors import UsageError

LARGEST_SEED = 2**32 - 1  # of NumPy's generators, which pl.seed_everything sets
MOST_SEEDS = 10_000


class InvalidValueError(ArgumentTypeError, ValueError):
    """An argument that is not valid; argparse prints the message with the option's name."""


def parse_names(text: str) -> list[str]:
    """Return the names of ``"KD,DKD"``; raises ValueError for an empty or repeated one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidValueError(f"{text!r} has an empty name: write NAME,NAME")
    _check_different(parts, text)
    return parts


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``"0-2"``, [0, 1, 2], or of ``"0,5"``, [0, 5]; raises ValueError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise InvalidValueError(f"{text!r} is not valid: write seeds like 0-4, or 0,7,9")
        seed_range = range(int(first), int(last or first) + 1)
        if not seed_range or seed_range[-1] > LARGEST_SEED:
            raise InvalidValueError(f"{part} contains no seed from 0 to {LARGEST_SEED}: write seeds like 0-4")
        if len(numbers) + len(seed_range) > MOST_SEEDS:
            raise InvalidValueError(f"{text!r} has more than {MOST_SEEDS} seeds: name fewer")
        numbers += seed_range
    _check_different(numbers, text)
    return numbers


def _check_different(items: Sequence[object], text: str) -> None:
    repeated = _repeated(items)
    if repeated:
        raise InvalidValueError(f"{text!r} names {', '.join(map(str, repeated))} more than once: name it once")


def check_unrepeated(option: str, items: Sequence[object]) -> None:
    """Raise UsageError if an option names something more than once."""
    repeated = _repeated(items)
    if repeated:
        raise UsageError(f"{option}: {', '.join(map(str, repeated))} is named more than once: name it once")


def _repeated(items: Iterable[object]) -> list[object]:
    return [item for item, count in Counter(items).items() if count > 1]


def check_effective(fit_options: Sequence[str], replaced: dict[str, str], command: str) -> None:
    """Raise UsageError for an option of ``fit`` that a command sets itself.

    Args:
        fit_options: arguments that the command hands on to ``fit``.
        replaced: by option, the option of the command that decides instead.
        command: name of the command.
    """
    for argument in fit_options:
        option = argument.partition("=")[0]
        if option in replaced:
            raise UsageError(f"{option} has no effect in {command}: {replaced[option]} decides, leave it out")
