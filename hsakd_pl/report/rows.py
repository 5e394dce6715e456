"""The runs below a folder, as the rows of a table."""

from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files.walk import walk
from hsakd_pl.records.formats import (
    DETAILS_FILE,
    HISTORY_FILE,
    RESULT_FILE,
    STEP_COLUMNS,
    TEST_FILE,
    Row,
    read_details,
    read_history,
    read_row,
    read_test,
)


def result_files(folder: Path) -> list[Path]:
    """Return the ``result.json`` of every run below ``folder``, sorted; a run with several names is listed once."""
    return sorted(Path(place, RESULT_FILE) for place, names in walk(folder) if RESULT_FILE in names)


def collect(folder: Path) -> list[Row]:
    """Read all runs below ``folder``, sorted by their folders.

    A row is the content of ``result.json``, with ``folder``, ``history`` (a dict per epoch), and
    ``test`` and ``details``, which are None before a test. Raises UsageError if there are no runs, or for a file that
    cannot be read.
    """
    rows = []
    for path in result_files(folder):
        row = read_row(path)
        row["folder"] = str(path.parent)
        # without logged steps, of which a run may have hundreds of thousands
        history = read_history(path.with_name(HISTORY_FILE))
        row["history"] = [line for line in history if line.keys() - STEP_COLUMNS]
        row["test"] = read_test(path.with_name(TEST_FILE))
        row["details"] = read_details(path.with_name(DETAILS_FILE))
        rows.append(row)
    if not rows:
        raise UsageError(f"no {RESULT_FILE} below {folder}: 'fit' writes one with every epoch")
    return rows


def seed_of(row: Row) -> str:
    """Return the name of a run's seed; of early versions, which did not record it, the folder."""
    seed = row["folder"] if row.get("seed") is None else str(row["seed"])
    data_seed = row.get("data_seed")
    return seed if data_seed is None else f"{seed}, data {data_seed}"
