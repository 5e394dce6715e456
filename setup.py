"""Describe the package to package indexes, whose pages neither show pictures of the checkout nor follow its links."""

import re
from pathlib import Path

from setuptools import setup


def without_link(link: re.Match[str]) -> str:
    """Return the text of a link into the checkout, and its file in brackets."""
    text, file = link["text"], link["file"]
    return text if text == file else f"{text} [{file}]"


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
description = re.sub(r"<picture>.*?</picture>\n+", "", readme, flags=re.DOTALL)
description = re.sub(r"!?\[(?P<text>[^]]+)]\((?!https?:)(?P<file>[^)]+)\)", without_link, description)
description += "\nThe source distribution contains the files in brackets.\n"

setup(long_description=description)
