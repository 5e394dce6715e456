"""Markdown extension of the site: draw formulas as SVG, which needs no script, font or network; show roles as code."""

import html
import re
from typing import Any

from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code>)")
SCALE = 100  # units of the drawing per em
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}


class Markup(Extension):
    """Run after all other extensions, for pages and docstrings alike."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 Markdown calls it
        """Register the last postprocessor."""
        md.postprocessors.register(Drawn(md), "markup", 0)


class Drawn(Postprocessor):
    """Replace the formulas and roles in the HTML of a page, and paths of pictures that begin in the repository."""

    def run(self, text: str) -> str:
        """Return the HTML with SVG for formulas, without the names of roles, with paths from ``docs/``."""
        drawn = FORMULA.sub(
            lambda match: f'<{match[1]} class="formula">{drawing(html.unescape(match[2]))}</{match[1]}>', text
        )
        return ROLE.sub("", drawn).replace('src="docs/assets/', 'src="assets/')  # of pages included from the root


def makeExtension(**_: Any) -> Markup:  # noqa: N802 Markdown calls it
    """Return the extension that ``docs.markup`` names in mkdocs.yml."""
    return Markup()


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
