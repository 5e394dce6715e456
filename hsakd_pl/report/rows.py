"""The rows of runs, grouped by what they may be compared in."""

from typing import Any, NamedTuple

Row = dict[str, Any]


class Group(NamedTuple):
    """Runs of one protocol: what stands in one line of a table."""

    name: str
    rows: list[Row]
    marks: list[str]
    paper: str
    recipe: str | None
    differences: dict[str, tuple[Any, Any]]
    others: list[Row]
