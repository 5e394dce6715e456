"""mkdocs hooks: render formulas as SVG, which needs no script, font or network, and show roles as code."""

import html
import pathlib
import re
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

FOLDER = pathlib.Path(__file__).resolve().parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code>)")
SCALE = 100  # units of the drawing per em
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}


def on_config(config: Any) -> Any:
    """Set the paths that would be relative to the folder in which mkdocs was started."""
    handlers = config["plugins"]["mkdocstrings"].config["handlers"]
    handlers["python"]["options"]["extensions"] = [str(FOLDER / "options.py")]
    config["mdx_configs"]["pymdownx.snippets"]["base_path"] = [str(FOLDER.parent)]
    return config


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocstrings reads its options


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas and roles in the HTML of a page."""
    drawn = FORMULA.sub(
        lambda match: f'<{match[1]} class="formula">{drawing(html.unescape(match[2]))}</{match[1]}>', content
    )
    return ROLE.sub("", drawn)


def drawing(latex: str) -> str:
    """Return a formula as SVG in the size and colour of the surrounding text, drawn with matplotlib's mathtext."""
    outline = TextPath((0, 0), f"${latex.strip()}$", size=SCALE, prop=FontProperties(math_fontfamily="cm"))
    strokes = []
    for points, code in outline.iter_segments(simplify=False):
        numbers = [f"{-value if place % 2 else value:.0f}" for place, value in enumerate(points)]
        strokes.append("Z" if code == Path.CLOSEPOLY else LETTERS[code] + " ".join(numbers))
    box = outline.get_extents().padded(4)
    sizes = {"width": box.width, "height": box.height, "vertical-align": box.y0}
    style = ";".join(f"{name}:{value / SCALE:.2f}em" for name, value in sizes.items())
    return (
        f'<svg role="img" aria-label="{html.escape(latex.strip())}" style="{style}" '
        f'viewBox="{box.x0:.0f} {-box.y1:.0f} {box.width:.0f} {box.height:.0f}">'
        f'<path fill="currentColor" d="{"".join(strokes)}"/></svg>'
    )
