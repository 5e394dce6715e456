"""Describe the files that the package writes, and their fields, as data for the documentation."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PLACEHOLDER = re.compile(r"<\w+>")


class Field(NamedTuple):
    """Describe a field of a file.

    Args:
        meaning: phrase that says what it holds.
        unit: unit or type; empty for text.
        when: condition under which the field is there; empty if it always is.
    """

    meaning: str
    unit: str = ""
    when: str = ""


class FileFormat(NamedTuple):
    """Describe a file.

    Args:
        name: name of the file.
        writer: command that writes it.
        summary: sentences about it.
        fields: fields by name. A dot leads into an object, ``[]`` into the entries of a list, and ``<name>`` is any
            name.
    """

    name: str
    writer: str
    summary: str
    fields: dict[str, Field] = {}  # noqa: RUF012, a default that nothing changes

    def described(self, path: str) -> str | None:
        """Return the name under which the field at a path is described; None if it is not.

        Examples:
            >>> FileFormat("a.json", "fit", "", {"peer<number>_acc": Field("accuracy")}).described("peer2_acc")
            'peer<number>_acc'
        """
        return path if path in self.fields else next(filter(lambda name: matches(name, path), self.fields), None)


def matches(name: str, path: str) -> bool:
    """Check whether a name with placeholders describes the field at a path.

    Examples:
        >>> matches("metrics.val/branch<number>_joint", "metrics.val/branch1_joint")
        True
    """
    parts = map(re.escape, PLACEHOLDER.split(name))
    return re.fullmatch(".+?".join(parts), path) is not None


def paths(content: Any, place: str = "") -> Iterator[str]:
    """Yield the paths of the fields of plain data, without the objects that contain them.

    Examples:
        >>> list(paths({"acc": 0.5, "cpu": {"cores": 2}, "exits": [{"left": [0.1, 0.9]}]}))
        ['acc', 'cpu.cores', 'exits[].left']
    """
    if isinstance(content, dict):
        for name, value in content.items():
            yield from paths(value, f"{place}.{name}" if place else str(name))
    elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        for entry in content:
            yield from paths(entry, f"{place}[]")
    elif place:
        yield place


def inside(prefix: str, fields: Mapping[str, Field], when: str = "") -> dict[str, Field]:
    """Return fields as those of an object, or of the entries of a list, within a file.

    Args:
        prefix: name of the object, or of the list with ``[]``.
        fields: fields by name.
        when: condition under which the object is there, in addition to those of its fields.
    """
    conditions = {name: " and ".join(filter(None, (when, field.when))) for name, field in fields.items()}
    return {f"{prefix}.{name}": field._replace(when=conditions[name]) for name, field in fields.items()}
