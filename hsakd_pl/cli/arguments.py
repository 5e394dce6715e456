"""Arguments of the command line, and the configurations among them, before anything large is imported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text
from hsakd_pl.files.careful import load_yaml

MOST_BYTES = 100_000  # of a configuration; those of this package have 1,000


def check_files(args: list[str]) -> None:
    """Read configurations once, so that one which is none is an error that names it."""
    for flag, value in pairs(args):
        if flag in ("-c", "--config") and Path(value).exists():
            configuration(value)


def pairs(args: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values: those behind a sign of equality, or the next argument."""
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        flag, sign, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if sign else following


def configuration(path: str) -> dict[str, Any]:
    """Read a configuration; raises UsageError for what is none."""
    try:
        content = load_yaml(read_text(path, MOST_BYTES))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no configuration, which has options by name: it is a {type(content).__name__}")
    return content


def settings(args: list[str]) -> dict[str, str]:
    """What configurations and options set, the later ones last: option, as on the command line -> value."""
    found: dict[str, str] = {}
    for flag, value in pairs(args):
        if flag in ("-c", "--config"):
            found |= _flat("", configuration(value))
        elif flag.startswith("--"):
            found[flag.removeprefix("--").replace(".init_args.", ".")] = value
    return found


def _flat(path: str, content: Any) -> dict[str, str]:
    if not isinstance(content, dict):
        return {path: "" if content is None else str(content).lower() if isinstance(content, bool) else str(content)}
    found: dict[str, str] = {}
    for key, value in content.items():
        inside = path if key in ("class_path", "init_args") else f"{path}.{key}".strip(".")
        found |= _flat(inside, value)
    return found
