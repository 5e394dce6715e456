"""Escape names of others, such as those of classes, folders and recipes, where a medium would interpret them."""

import re
import sys
import unicodedata
from typing import TextIO

# Characters that control a terminal (Cc), break a line (Zl, Zp) or have no encoding (Cs)
UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# Characters that turn the direction of the text after them around
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# The beginnings of a cell that spreadsheets take for a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# What Markdown reads as code, a tag, an entity, a cell's end, a link, a picture or an emphasis
MARKDOWN = re.compile(r"[\\`<&|]|\](?=[(\[:])|!(?=\[)|(?<!\w)_|_(?!\w)|\*(?=.*\*)|(?<=\*)\*|~(?=~)|(?<=~)~")
# Characters with a meaning in LaTeX; a backslash needs the text font
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def for_terminal(text: str, kept: str = "") -> str:
    """Return text in which characters that control a terminal are written as escapes, but for those in ``kept``.

    Examples:
        >>> for_terminal("a\\x1b[2J\\nb")
        'a\\\\x1b[2J\\\\nb'
    """
    return "".join(sign if sign in kept or not _is_unsafe(sign) else _escaped(sign) for sign in text)


def show(text: str, file: TextIO | None = None) -> None:
    """Print lines, with escapes for characters that control a terminal or that its encoding lacks."""
    target = sys.stdout if file is None else file
    encoding = target.encoding or "utf-8"
    line = for_terminal(text, kept="\n")
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=target, flush=True)


def for_markdown(text: str) -> str:
    """Return text as one line of Markdown, or a cell of its tables, that shows it letter by letter."""
    return MARKDOWN.sub(r"\\\g<0>", for_terminal(text))


def for_latex(text: str) -> str:
    """Return text as one line of LaTeX, or a cell of its tables, that shows it letter by letter."""
    return "".join(LATEX.get(sign, sign) for sign in for_terminal(text))


def for_spreadsheet(text: str) -> str:
    """Return text as a cell that a spreadsheet does not run as a formula: with an apostrophe before it where needed."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _is_unsafe(sign: str) -> bool:
    return unicodedata.category(sign) in UNSAFE_CATEGORIES or sign in DIRECTIONS


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
