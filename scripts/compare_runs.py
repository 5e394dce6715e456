"""Compare runs with stored ones in folders of the same names: python scripts/compare_runs.py STORED REPEATED.

Prints the loss of the first epoch and the last validated accuracy of both, and their differences. Runs that only one of
the two has are counted. Ends with status 1 if a protocol differs, or if nothing can be compared.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.records.formats import HISTORY_FILE, RESULT_FILE, read_history, read_row
from hsakd_pl.records.measured import last_accuracy


class Run(NamedTuple):
    """Hold the figures of a run that are compared, and the hash of its protocol."""

    first_loss: float | None
    accuracy: float | None
    epochs: int
    protocol: str | None


def read_runs(folder: Path) -> dict[str, Run]:
    """Return the runs below a folder, by their own folders."""
    runs = {}
    for path in sorted(folder.rglob(RESULT_FILE)):
        row = read_row(path)
        history = read_history(path.with_name(HISTORY_FILE))
        first_loss = history[0].get("train/loss") if history else None
        protocol = row.get("protocol", {}).get("hash")
        runs[path.parent.relative_to(folder).as_posix()] = Run(first_loss, last_accuracy(row), row["epochs"], protocol)
    return runs


def table(stored: dict[str, Run], repeated: dict[str, Run]) -> Iterator[str]:
    """Yield a line for each run that both have, after the headings."""
    yield f"{'':48} {'loss of the first epoch':^30}   {'accuracy, %':^22}"
    yield f"{'run':48} {'stored':>9} {'here':>9} {'difference':>10}   {'stored':>6} {'here':>6} {'difference':>10}"
    for name in sorted(stored.keys() & repeated.keys()):
        before, after = stored[name], repeated[name]
        losses = compared(before.first_loss, after.first_loss, 9, 5)
        if before.epochs != after.epochs:
            ending = f"   {after.epochs} of {before.epochs} epochs"
        elif before.protocol != after.protocol:
            ending = "   another protocol"
        else:
            ending = f"   {compared(before.accuracy, after.accuracy, 6, 2, unit=100)}"
        yield f"{name:48} {losses}{ending}"


def compared(before: float | None, after: float | None, width: int, digits: int, unit: int = 1) -> str:
    """Return both numbers and their difference; dashes for what was not measured."""
    if before is None or after is None:
        return f"{'-':>{width}} {'-':>{width}} {'-':>10}"
    numbers = f"{unit * before:{width}.{digits}f} {unit * after:{width}.{digits}f}"
    return f"{numbers} {unit * (after - before):+10.{digits}f}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stored", type=Path)
    parser.add_argument("repeated", type=Path)
    options = parser.parse_args()
    try:
        stored, repeated = read_runs(options.stored), read_runs(options.repeated)
    except UsageError as error:
        parser.exit(2, f"error: {error}\n")
    common = stored.keys() & repeated.keys()
    if not common:
        parser.exit(1, f"error: {options.stored} and {options.repeated} have no run in common: check both folders\n")
    print("\n".join(table(stored, repeated)))
    if len(repeated) > len(common):
        print(f"{counted(len(repeated) - len(common), 'run')} in {options.repeated} without a stored one")
    changed = [
        name
        for name in common
        if stored[name].epochs == repeated[name].epochs and stored[name].protocol != repeated[name].protocol
    ]
    if changed:
        parser.exit(1, f"error: another protocol than the stored one: {', '.join(sorted(changed))}\n")


if __name__ == "__main__":
    main()
