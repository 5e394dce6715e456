"""Write docs/api.md, an index of the names on the pages in docs/api/.

python scripts/api_page.py
"""

from pathlib import Path

import griffe
from method_pages import LISTED, ROLE, api_pages

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
ORDER = ("networks", "modules", "data", "methods", "export")
INTRODUCTION = """\
# API

The public names of `hsakd_pl`, `hsakd_pl.methods` and `hsakd_pl.ops`, by page.
"""


def page() -> str:
    """Return the index."""
    package = griffe.load("hsakd_pl")
    assert isinstance(package, griffe.Module)
    pages = {path.stem: path for path in api_pages()}
    assert sorted(pages) == sorted(ORDER)
    return "\n".join([INTRODUCTION, *(section(name, pages[name].read_text(), package) for name in ORDER)])


def section(name: str, text: str, package: griffe.Module) -> str:
    """Return the table of the names on a page."""
    title = text.partition("\n")[0].removeprefix("# ")
    lines = [f"## {title}", "", "| name | summary |", "|---|---|"]
    for path in LISTED.findall(text):
        if path == "methods":
            continue  # the package, whose text opens the page
        short = path.rpartition(".")[2]
        # the anchor keeps links to this page alive
        link = f'<a id="hsakd_pl.{path}"></a>[`{short}`](api/{name}.md#hsakd_pl.{path})'
        lines.append(f"| {link} | {summary(package[path])} |")
    return "\n".join([*lines, ""])


def summary(member: griffe.Object | griffe.Alias) -> str:
    """Return the first paragraph of a docstring as Markdown."""
    assert member.docstring is not None, member.path
    paragraph = " ".join(member.docstring.value.partition("\n\n")[0].split()).replace("``", "`")
    return ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", paragraph).replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
