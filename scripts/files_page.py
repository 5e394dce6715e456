"""Write docs/files.md from the descriptions of files next to their formats.

python scripts/files_page.py
"""

from pathlib import Path

from hsakd_pl.export.described import FILES as OF_EXPORTS
from hsakd_pl.files.described import FileFormat
from hsakd_pl.records.described import FILES as OF_RUNS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "files.md"
ABSENT = ("null", "empty list")  # what a file has in place of an object or of entries
INTRODUCTION = """\
# Files

The files that the [commands](command-line.md) write, and their fields. A dot leads into an object, `[]` into the
entries of a list, and `<name>` is any name. Accuracies, calibration errors and shares are fractions in [0, 1] in all of
them. JSON files hold null for NaN and infinity. Later versions may add fields, so readers should ignore those that they
do not know.
"""
OF_RUNS_TEXT = """\
## Files of a run

They are in the folder of the run, `trainer.default_root_dir`; `predict` writes into `--folder`, `report` into the
folder that it reads.
"""
OF_EXPORTS_TEXT = """\
## Files of an export

They are in the folder of the export; `calibration.json` is next to the checkpoint, and its content becomes part of
`config.json`.
"""


def page() -> str:
    """Return the page."""
    sections = [INTRODUCTION, OF_RUNS_TEXT, *map(section, OF_RUNS), OF_EXPORTS_TEXT, *map(section, OF_EXPORTS)]
    return "\n".join(sections)


def section(file: FileFormat) -> str:
    """Return the section of a file."""
    lines = [f"### {file.name}", "", f"{file.summary} Written by `hsakd {file.writer}`."]
    if file.fields:
        lines += ["", "| field | unit or type | meaning |", "|---|---|---|"]
    for name, field in file.fields.items():
        condition = f"; only with {field.when}" if field.when else ""
        if field.unit in ABSENT:
            condition = f", with {field.when}"
        lines.append(f"| `{name}` | {field.unit or 'text'} | {field.meaning}{condition} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
