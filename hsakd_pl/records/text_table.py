"""Tables as aligned text."""

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from hsakd_pl.files.escaping import for_terminal

NARROWEST = 18  # characters to which text is broken
LEFT_ALIGNED = ("marks", "note")  # columns of these names, and the first one; numbers are aligned to the right


def text_table(lines: Sequence[Mapping[str, str]], width: int | None = None) -> str:
    """Align lines that have the same columns.

    Args:
        lines: cells by column.
        width: columns of a terminal, to which texts are broken as far as possible; None for the width of the content.
    """
    columns = list(lines[0])
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_text = column in (columns[0], *LEFT_ALIGNED)
        longest = max(len(line[column]) for line in lines)
        grid.add_column(
            escape(for_terminal(column)),
            no_wrap=width is None or not is_text,
            justify="left" if is_text else "right",
            overflow="fold",
            min_width=min(longest, NARROWEST) if is_text else None,
        )
    for line in lines:
        grid.add_row(*(escape(for_terminal(cell)) for cell in line.values()))
    output = StringIO()
    console = Console(file=output, width=10_000, color_system=None)
    if width is not None:
        console.width = max(width, Measurement.get(console, console.options, grid).minimum)
    console.print(grid)
    return "\n".join(line.rstrip() for line in output.getvalue().strip("\n").splitlines())
