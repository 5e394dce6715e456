"""Write docs/command-line.md from the parsers of the commands.

python scripts/command_line_page.py
"""

import re
import sys
from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter
from contextlib import suppress
from functools import partial
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from method_pages import api_link

from hsakd_pl.cli.arguments import UNUSED
from hsakd_pl.cli.commands import COMMANDS, make_parser
from hsakd_pl.cli.formatter import without_markup
from hsakd_pl.cli.help import classes
from hsakd_pl.cli.lightning_cli import HSAKDCLI

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
WIDTH = 96  # characters of the usage, as many as a page shows
DEFAULT = re.compile(r"(?: \(|, )default: ([^()]+)\)$")
TYPE = re.compile(r" \(type: .+$")
LIGHTNING = "[Lightning's `Trainer`](https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-class-api)"
# Why the example of a command is not among those that tests/test_readme.py runs
NOT_RUN = {
    "convert": "tests/data/test_lit.py converts generated images",
    "sweep": "three runs; tests/test_readme.py sweeps another recipe",
    "calibrate": "needs a run that held out images, as in tests/test_calibrate.py",
    "export": "tests/test_readme.py exports another run",
}
INTRODUCTION = """\
# Command line

`hsakd COMMAND --help` shows what is on this page. `hsakd`, `python main.py` and `python -m hsakd_pl` are the same
program; `hsakd --version` prints its version. After any command, `--debug` shows the traceback of an error, which is
otherwise one line, with exit status 2. [Files](files.md) describes what the commands write.
"""
FIT_TEXT = f"""\
Options come from the command line or from configurations, `--config FILE`; a later one replaces an earlier one. Options
of the model and of the data are those of their classes, which the [API](api.md) lists with their defaults:
`--model.lr 0.1` and `--data.root photos`, or `--model.init_args.lr` in full. `hsakd fit --model.help CLASS` and
`--data.help CLASS` show them in a terminal. `--trainer.NAME` is an option of
{LIGHTNING}.
"""
OPTION = re.compile(r"(?<![\w-])--[\w-]+(?:\.\w+)*(?: (?:[A-Z]{4,}|\d+)\b)?")
HEAD = ["| option | default | meaning |", "|---|---|---|"]


class BuiltCLI(HSAKDCLI):
    """Exit as soon as the parsers are built."""

    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
        sys.exit()


def fit_parser() -> Any:
    """Return the parser of ``fit``."""
    cli = BuiltCLI.__new__(BuiltCLI)
    with suppress(SystemExit):
        cli.__init__(args=["fit"])
    return cli._subcommand_parsers["fit"]


def page() -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for name, command in COMMANDS.items():
        if command.module:
            section = section_of_command(name)
        else:
            section = section_of_fit() if name == "fit" else section_of_evaluation(name)
        sections.append(f"## hsakd {name}\n\n{section}\n{example(name)}")
    return "\n".join(sections)


def example(name: str) -> str:
    """Return the block with the example of a command."""
    reason = f"<!-- not run: {NOT_RUN[name]} -->\n" if name in NOT_RUN else ""
    return f"{reason}```bash\nhsakd {name} {COMMANDS[name].example}\n```\n"


def section_of_command(name: str) -> str:
    """Return description, usage and options of a command with a parser of its own."""
    parser = make_parser(name)
    parser.formatter_class = partial(HelpFormatter, width=WIDTH)
    usage = parser.format_usage().removeprefix("usage: ").replace("\n       ", "\n")
    rows = [row(parser, action) for action in parser._actions if action.dest not in ("help", "debug")]
    description = prose(str(import_module(COMMANDS[name].module).__doc__).strip())
    return "\n".join([description, "", "```text", f"{usage}```", "", *HEAD, *rows, ""])


def section_of_fit() -> str:
    """Return description and options of ``fit``; its other options belong to classes."""
    parser = fit_parser()
    rows = []
    for action in parser._actions:
        is_lightnings = action.dest.startswith("trainer.") and action.dest != "trainer.default_root_dir"
        is_help = action.dest.endswith(".help") or action.dest == "help"
        if action.help != SUPPRESS and not is_help and not is_lightnings:
            rows.append(row(parser, action))
    return "\n".join([COMMANDS["fit"].summary, "", FIT_TEXT, *HEAD, *rows, ""])


def section_of_evaluation(name: str) -> str:
    """Return the description of a command with the options of ``fit``, and those that have no effect in it."""
    options = [option for option in UNUSED[name] if name == "validate" or option not in UNUSED["validate"]]
    unused = ", ".join(f"`--{option}`" for option in options)
    if name != "validate":
        unused = f"{unused}, and those that `validate` refuses but `--trainer.limit_{name}_batches`"
    return (
        f"{COMMANDS[name].summary}\n\nThe options are those of [`fit`](#hsakd-fit). Options without an effect here are "
        f"refused on the command line: {unused}.\n"
    )


def row(parser: ArgumentParser, action: Action) -> str:
    """Return the line of an option."""
    text = " ".join(parser._get_formatter()._expand_help(action).split())
    stated = DEFAULT.search(text)
    default = stated[1] if stated else action.default
    cells = [f"`{invocation(action)}`", shown(default), meaning(action, TYPE.sub("", DEFAULT.sub("", text)))]
    return f"| {' | '.join(cells)} |"


def shown(default: Any) -> str:
    """Return a default as Markdown; empty for an option that is not set."""
    if default in (None, SUPPRESS, "null") or default is False:
        return ""
    return str(default) if " " in str(default) else f"`{default}`"


def meaning(action: Action, text: str) -> str:
    """Return the description of an option as Markdown."""
    if action.dest not in ("model", "data"):
        return prose(text)
    home = "hsakd_pl.methods"
    listed = [api_link(name, docs="") for name, cls in classes(action.dest).items() if not is_in(cls, home)]
    methods = "one of the [methods](methods/index.md), " if action.dest == "model" else ""
    return f"Class: {', '.join(listed)}, {methods}or an import path."


def is_in(cls: type, package: str) -> bool:
    """Check whether a class is defined in a package."""
    return cls.__module__.startswith(f"{package}.")


def invocation(action: Action) -> str:
    """Return how an option is written, with its value."""
    names = [name for name in action.option_strings if not name.endswith("+")]
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.rpartition(".")[2].upper()
    if not names:
        return action.metavar if isinstance(action.metavar, str) else action.dest
    if action.nargs == 0 or action.dest == "print_config":
        return ", ".join(names)
    if action.choices:
        metavar = f"{{{','.join(map(str, action.choices))}}}"
    elif metavar.startswith("{"):  # jsonargparse's of a switch
        metavar = "{true,false}"
    return f"{', '.join(names)} {metavar}"


def prose(text: str) -> str:
    """Return a docstring's or a help's text as Markdown, with commands and options as code."""
    text = escape(without_markup(text), quote=False)
    text = re.sub(r"hsakd [a-z]+(?:\s(?:--[\w.-]+|[A-Z]+\b|\d-\d))+", lambda command: f"`{command[0]}`", text)
    parts = text.split("`")
    return "`".join(part if place % 2 else OPTION.sub(r"`\g<0>`", part) for place, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page())
