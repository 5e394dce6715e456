"""Declare what a JSON file may contain, and check its content before anything is computed from it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from packaging.version import Version

DEEPEST = 20  # levels of an undeclared part


class Schema(Protocol):
    """The valid values of a part of a file."""

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError, naming the place, for a value that is not valid."""


@dataclass(frozen=True)
class Number:
    """A finite number from ``low`` to ``high``, an integer if it is ``whole``; None if it is ``optional``."""

    low: float = 0
    high: float = 1e9
    whole: bool = False
    optional: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else; True and False are not numbers."""
        if value is None and self.optional:
            return
        types = (int,) if self.whole else (int, float)
        if type(value) not in types or not self.low <= value <= self.high:
            raise _invalid(value, place)


@dataclass(frozen=True)
class Text:
    """Text that can be encoded and therefore printed; None if it is ``optional``."""

    optional: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if value is None and self.optional:
            return
        if not isinstance(value, str):
            raise _invalid(value, place)
        value.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair


@dataclass(frozen=True)
class VersionText:
    """A version number as Python's packages have them."""

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        Text().check(value, place)
        Version(value)  # raises InvalidVersion, a ValueError


@dataclass(frozen=True)
class Anything:
    """Any value, which is not used or is checked elsewhere."""

    def check(self, value: Any, place: str) -> None:
        """Accept the value."""


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if not isinstance(value, bool):
            raise _invalid(value, place)


@dataclass(frozen=True)
class Plain:
    """A value that JSON can hold: printable text, finite numbers, lists and dicts of at most ``DEEPEST`` levels."""

    depth: int = DEEPEST

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if isinstance(value, str):
            Text().check(value, place)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _invalid(value, place)
        elif isinstance(value, list | dict):
            if self.depth == 0:
                raise ValueError(f"{place} is nested more than {DEEPEST} levels deep")
            inner = Plain(self.depth - 1)
            part = Items(inner) if isinstance(value, list) else Fields(others=inner)
            part.check(value, place)
        elif value is not None and not isinstance(value, int | float):
            raise _invalid(value, place)


@dataclass(frozen=True)
class Items:
    """A list of at least ``fewest`` entries of one kind; None if it is ``optional``."""

    entry: Schema
    fewest: int = 0
    optional: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if value is None and self.optional:
            return
        if not isinstance(value, list) or len(value) < self.fewest:
            raise _invalid(value, place)
        for number, entry in enumerate(value):
            self.entry.check(entry, f"{place}[{number}]")


@dataclass(frozen=True)
class Tuple:
    """A list of one entry of each of these kinds; None if it is ``optional``."""

    entries: tuple[Schema, ...]
    optional: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if value is None and self.optional:
            return
        if not isinstance(value, list) or len(value) != len(self.entries):
            raise _invalid(value, place)
        for number, (entry, schema) in enumerate(zip(value, self.entries, strict=True)):
            schema.check(entry, f"{place}[{number}]")


@dataclass(frozen=True)
class Fields:
    """An object with these fields.

    Args:
        declared: fields by name.
        required: names of the fields that must be present.
        others: values of fields with other names.
        optional: whether None is valid as well.
    """

    declared: Mapping[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    others: Schema = Plain()
    optional: bool = False

    def check(self, value: Any, place: str = "") -> None:
        """Raise ValueError for anything else."""
        if value is None and self.optional:
            return
        if not isinstance(value, dict):
            raise _invalid(value, place or "the content")
        for name in self.required:
            if name not in value:
                raise ValueError(f"{_inside(place, name)} is missing")
        for name, entry in value.items():
            Text().check(name, place)
            self.declared.get(name, self.others).check(entry, _inside(place, name))


def parse_json(text: str) -> Any:
    """Parse JSON; raises ValueError for text that is not, for NaN, and for text that is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _inside(place: str, name: str) -> str:
    return f"{place}.{name:.80}" if place else f"{name:.80}"


def _invalid(value: Any, place: str) -> ValueError:
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        shown = f"a {type(value).__name__}"
    return ValueError(f"{place} is {shown:.40}")
