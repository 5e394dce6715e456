"""The pages and pictures that a report has written, which it may replace: they say so in their metadata."""

from pathlib import Path

from hsakd_pl.files import naming

REPORT_TITLE = "hsakd report"
# Title of a report as it is stored in a page, and in the pictures that matplotlib writes
STORED_TITLES = (
    f" \u2013 {REPORT_TITLE}</title>",
    f"<dc:title>{REPORT_TITLE}</dc:title>",
    f"/Title ({REPORT_TITLE})",
    f"tEXtTitle\0{REPORT_TITLE}",
)
LOOKED_AT = 100_000  # bytes at the start of a file, and at its end, where a PDF has its title


def is_of_report(path: Path) -> bool:
    """Return whether a page or a picture was written by a report, or is missing."""
    with naming(path):
        if not path.exists():
            return True
        if not path.is_file():
            return False
        with path.open("rb") as file:
            content = file.read(LOOKED_AT)
            file.seek(max(0, path.stat().st_size - LOOKED_AT))
            content += file.read(LOOKED_AT)
    return any(title.encode() in content for title in STORED_TITLES)
