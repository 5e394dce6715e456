"""Show the results of all runs below a folder: a table per data set, a row per protocol, with the paper's number.

The result is the last epoch's accuracy of the class head, mean and standard deviation over seeds. Runs that differ in
anything but the seed and the location of files are different rows.
"""

import json
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_pl.errors import UsageError
from hsakd_pl.report import TABLE_FORMATS

if TYPE_CHECKING:
    from hsakd_pl.report.groups import Group

LEFT_OUT = ("history", "test", "details")  # of rows.jsonl: read from other files of a run


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, help="folder with one or more runs; it receives rows.jsonl")
    parser.add_argument("--format", choices=TABLE_FORMATS, default="table", help="format of the printed table")
    parser.add_argument("--against", metavar="ROW", help="add the paired difference to this row, over common seeds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of all rows: png, svg or pdf")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with everything, in one file")


def run(options: Namespace) -> None:
    """Print the table, and write the other outputs that were asked for."""
    report(options.folder, options.format, options.against, options.plot, options.html)


def report(
    folder: Path,
    form: str = "table",
    against: str | None = None,
    plot: Path | None = None,
    html: Path | None = None,
) -> None:
    """Print the table of all runs below ``folder``; write ``rows.jsonl`` there, and curves and a page on request."""
    from hsakd_pl.files import local_path
    from hsakd_pl.files.escaping import show
    from hsakd_pl.report.groups import groups
    from hsakd_pl.report.owned import REPORT_TITLE, is_of_report
    from hsakd_pl.report.rows import collect
    from hsakd_pl.report.table import as_text, find_group

    folder = local_path("folder", folder)
    for option, path in (("plot", plot), ("html", html)):
        if path is not None and not is_of_report(local_path(option, path)):
            raise UsageError(f"{option}: {path} exists and was not written by a report: name another file")
    rows = collect(folder)
    _write_rows(folder, rows)
    _show_failed(folder)
    table = groups(rows)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    show(as_text(table, form, None if against is None else find_group(table, against), width))
    if plot is not None:
        from hsakd_pl.records.curves import save_curves

        histories = _histories(table)
        if not any(any(runs) for runs in histories.values()):
            raise UsageError(f"plot: no run below {folder} has a metrics.csv")
        save_curves(histories, local_path("plot", plot), REPORT_TITLE)
    if html is not None:
        from hsakd_pl.report.page import write_page

        write_page(table, local_path("html", html))


def _write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows.jsonl``, or say why it was not written."""
    from hsakd_pl.files import replacing
    from hsakd_pl.files.escaping import show
    from hsakd_pl.records.formats import is_report

    rows_file = folder / "rows.jsonl"
    try:
        if not is_report(rows_file):
            raise UsageError(f"{rows_file} was not written by a report: rename it")
        with replacing(rows_file) as file:
            for row in rows:
                kept = {key: value for key, value in row.items() if key not in LEFT_OUT}
                file.write(json.dumps(kept) + "\n")
    except UsageError as error:  # also for a folder that may only be read, such as another user's
        show(f"rows.jsonl was not written: {error}", sys.stderr)


def _show_failed(folder: Path) -> None:
    """Name the folders of runs without a result, which are in no table."""
    from hsakd_pl.files.escaping import show
    from hsakd_pl.files.walk import walk
    from hsakd_pl.records.formats import CONFIG_FILE, RESULT_FILE

    for place, names in walk(folder):
        if CONFIG_FILE in names and RESULT_FILE not in names:
            show(f"{place} has no {RESULT_FILE}: its run failed, or is in its first epoch", sys.stderr)


def _histories(table: "Sequence[Group]") -> dict[str, list[Any]]:
    """Return the histories of the runs of each row, whose names say on which data they are if there are several."""
    from hsakd_pl.report.groups import by_data

    sections = by_data(table)
    histories = {}
    for label, members in sections.items():
        for group in filter(lambda group: group.rows, members):
            name = group.name if len(sections) == 1 else f"{group.name} ({label})"
            histories[name] = [row["history"] for row in group.rows]
    return histories
