"""Tables as aligned text."""

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hsakd_pl.files.escaping import for_terminal

NARROWEST = 18  # characters to which text is broken
GAP = 3  # between columns of rich's tables
LEFT_ALIGNED = ("marks", "note")  # columns of these names, and the first one; numbers are aligned to the right


def text_table(lines: Sequence[Mapping[str, str]], width: int | None = None) -> str:
    """Align lines that have the same columns.

    Args:
        lines: cells by column.
        width: columns of a terminal: texts are broken, and where that does not suffice, further columns follow below
            in tables that begin with the same first column; None for one table as wide as its content.
    """
    if width is None:
        return _aligned(lines, list(lines[0]), None)
    first, *others = lines[0]
    tables = [[first]]
    for column in others:
        needed = sum(_least_width(lines, name) + GAP for name in (*tables[-1], column))
        if needed > width and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(column)
    return "\n\n".join(_aligned(lines, columns, width) for columns in tables)


def _is_text(lines: Sequence[Mapping[str, str]], column: str) -> bool:
    return column in (next(iter(lines[0])), *LEFT_ALIGNED)


def _least_width(lines: Sequence[Mapping[str, str]], column: str) -> int:
    """Return the width of the longest cell, or word of the header; less for texts, which are broken."""
    longest = max(len(for_terminal(text)) for text in (*column.split(), *(line[column] for line in lines)))
    return min(longest, NARROWEST) if _is_text(lines, column) else longest


def _aligned(lines: Sequence[Mapping[str, str]], columns: Sequence[str], width: int | None) -> str:
    """Align some columns in a table of at most ``width``, but no less than they need."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(
            escape(for_terminal(column)),
            no_wrap=width is None,
            justify="left" if _is_text(lines, column) else "right",
            overflow="fold",
            min_width=None if width is None else _least_width(lines, column),
        )
    for line in lines:
        grid.add_row(*(escape(for_terminal(line[column])) for column in columns))
    needed = sum(_least_width(lines, column) + GAP for column in columns)
    output = StringIO()
    terminal_width = 10_000 if width is None else max(width, needed)
    # in a notebook, rich would show the grid below the cell instead of writing it into the file
    Console(file=output, width=terminal_width, color_system=None, force_jupyter=False).print(grid)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).strip("\n")
