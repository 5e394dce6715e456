"""Tables as aligned text."""

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hsakd_pl.files.escaping import for_terminal

LEFT_ALIGNED = ("marks", "note")  # columns of these names, and the first one; numbers are aligned to the right


def text_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Align lines that have the same columns; the table is as wide as its content, whatever the terminal."""
    columns = list(lines[0])
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_text = column in (columns[0], *LEFT_ALIGNED)
        grid.add_column(escape(for_terminal(column)), no_wrap=True, justify="left" if is_text else "right")
    for line in lines:
        grid.add_row(*(escape(for_terminal(cell)) for cell in line.values()))
    output = StringIO()
    # in a notebook, rich would show the grid below the cell instead of writing it into the file
    Console(file=output, width=10_000, color_system=None, force_jupyter=False).print(grid)
    return "\n".join(line.rstrip() for line in output.getvalue().strip("\n").splitlines())
