"""Show the results of all runs below a folder: a line a protocol, with the paper's number beside ours.

The result is the last epoch's accuracy of the class head, mean and standard deviation over seeds. Runs that differ in
anything but their seed and the places of their files are different lines.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.records.curves import save_curves
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import TABLE_FORMATS, as_text, find_group


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Print the table, and write what else is asked for."""
    parser.add_argument("folder", type=Path, help="of one or more runs; rows.jsonl is written into it")
    parser.add_argument("--format", choices=TABLE_FORMATS, default="table", help="of the table that is printed")
    parser.add_argument("--against", metavar="ROW", help="add the paired difference to this row, over common seeds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of all rows: png, svg or pdf")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with everything, in one file")
    asked = parser.parse_args(args)
    rows = collect(asked.folder)
    with replacing(asked.folder / "rows.jsonl") as file:
        added = ("history", "test", "details")
        file.writelines(json.dumps({k: v for k, v in row.items() if k not in added}) + "\n" for row in rows)
    found = groups(rows)
    against = None if asked.against is None else find_group(found, asked.against)
    print(as_text(found, asked.format, against))
    if asked.plot is not None:
        histories = {group.name: [row["history"] for row in group.rows] for group in found if group.rows}
        if not any(any(each) for each in histories.values()):
            raise UsageError(f"plot: no run below {asked.folder} has a metrics.csv")
        save_curves(histories, asked.plot)
    if asked.html is not None:
        from hsakd_pl.report.page import write_page

        write_page(found, asked.html)
