"""Formulas of docstrings as Markdown, in the notation of the pages."""

import re

DISPLAYED = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +.+)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")


def as_markdown(docstring: str) -> str:
    r"""Return a docstring with ``$$ ... $$`` for its directives ``.. math::``, and ``$...$`` for its roles ``:math:``.

    Examples:
        >>> as_markdown(".. math:: a +\n    b")
        '$$ a + b $$'
    """
    displayed = DISPLAYED.sub(lambda match: f"{match[1]}$$ {' '.join(match[2].split())} $$", docstring)
    return INLINE.sub(r"$\1$", displayed)
