"""Write docs/surprises.md from the heads of the scripts in findings/ and the table in findings/README.md.

python scripts/findings_page.py
"""

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
FINDINGS = REPOSITORY / "findings"
PAGE = REPOSITORY / "docs" / "surprises.md"
EXPECTATION = "Most people expect"
INTRODUCTION = """\
# What surprised us

What libraries of this field do with valid input and most people do not expect. None of it is a fault of this project. A
script for each in `findings/` installs pinned public packages into a temporary folder, shows the behaviour without
`hsakd_pl`, and fails if it changes.
"""


class Finding(NamedTuple):
    """Hold the head of a script, and its row of the table."""

    script: str
    behaviour: str
    expectation: str
    versions: str
    summary: str
    consequence: str


def read_findings() -> list[Finding]:
    """Return the findings in the order of the table; raises ValueError for a script that has no row, or no head."""
    rows = re.findall(r"^\| `([\w.-]+\.sh)` \| (.+?) \| (.+?) \|$", (FINDINGS / "README.md").read_text(), re.MULTILINE)
    scripts = {path.name for path in FINDINGS.glob("*.sh")}
    if scripts ^ {script for script, *_ in rows}:
        raise ValueError(f"{FINDINGS / 'README.md'} and its folder differ: {scripts ^ {row[0] for row in rows}}")
    return [read_finding(script, summary, consequence) for script, summary, consequence in rows]


def read_finding(script: str, summary: str, consequence: str) -> Finding:
    """Return a finding from the comment at the head of its script: behaviour, expectation, and versions with a date."""
    _, head = re.match(r"(#!.+\n)((?:# .+\n)+)", (FINDINGS / script).read_text()).groups()
    *lines, versions = [line.removeprefix("# ") for line in head.splitlines()]
    behaviour, word, expectation = " ".join(lines).partition(EXPECTATION)
    if not word or not re.search(r"\d{4}-\d{2}-\d{2}$", versions):
        raise ValueError(f"the head of {script} lacks what most people expect, or versions and a date at its end")
    return Finding(script, behaviour.strip(), word + expectation, versions, summary, consequence)


def page(findings: list[Finding]) -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for finding in findings:
        library = finding.versions.split()[0]
        sections.append(
            f"## {library}: {finding.summary}\n\n{escaped(finding.behaviour)}\n\n{escaped(finding.expectation)}\n\n"
            f"Here: {finding.consequence}.\n\n{finding.versions}; `findings/{finding.script}`\n"
        )
    return "\n".join(sections)


def escaped(text: str) -> str:
    """Return text whose asterisks are shown; those between backticks are already."""
    parts = text.split("`")
    return "`".join(part if place % 2 else part.replace("*", r"\*") for place, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page(read_findings()))
