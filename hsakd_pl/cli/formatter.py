"""The help of ``fit``, ``validate``, ``test`` and of classes: jsonargparse's, reduced to the options."""

import re
from argparse import SUPPRESS, Action
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

from hsakd_pl.cli.commands import width

CLASS_HELP = ("model.help", "data.help")  # the only options that show the help of a class here


class OptionFormatter(DefaultHelpFormatter):
    """Show options with types and defaults, without a block of usage and without lists of foreign subclasses."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options | {"width": width()})

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        """Add nothing: the usage names every option once more."""

    def add_argument(self, action: Action) -> None:
        hidden = action.dest.endswith(".help") and action.dest not in CLASS_HELP
        if not hidden and action.help != SUPPRESS:
            super().add_argument(action)

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and without_markup(heading))

    def _format_action_invocation(self, action: Action) -> str:
        appending = [option for option in action.option_strings if option.endswith("+")]
        if not appending:
            return super()._format_action_invocation(action)
        shown = action.option_strings
        action.option_strings = [option for option in shown if option not in appending]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = shown

    def _get_help_string(self, action: Action) -> str:
        text = str(super()._get_help_string(action))
        subclasses = action.extra_help() if hasattr(action, "extra_help") else ""
        if subclasses:
            text = text.replace(subclasses, "")
        if action.dest.startswith("trainer.") and action.help:
            text = text.replace(action.help, first_sentence(action.help))
        return without_markup(text)


def first_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def without_markup(text: str) -> str:
    """Return a docstring's text without the marks of reStructuredText."""
    return re.sub(r":\w+:`[~.]?([^`]*)`|`+([^`]*)`+", r"\1\2", text)
