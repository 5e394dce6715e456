"""The commands and their parsers, which need neither PyTorch nor Lightning."""

import shutil
from argparse import ArgumentParser, HelpFormatter, Namespace
from collections import Counter
from importlib import import_module
from textwrap import fill
from typing import Any, NamedTuple, NoReturn

from hsakd_pl.errors import UsageError

WIDEST = 120  # characters of a line of help
DIGITS = "configs/digits/teacher_joint_resnet20.yaml"
RUN = "runs/digits/teacher_joint_resnet20"


class Command(NamedTuple):
    """A command.

    Args:
        summary: a sentence about it.
        example: arguments of an example.
        module: module that runs it, or "" for LightningCLI's own commands.
        imports_classes: whether its options may name classes of the user.
    """

    summary: str
    example: str
    module: str = ""
    imports_classes: bool = True


COMMANDS = {  # in the order in which they are needed
    "recipes": Command(
        "List the experiments, or write them into a folder.", "configs", "hsakd_pl.commands.recipes", False
    ),
    "fit": Command("Train a model; all outputs go to one folder.", f"--config {DIGITS}"),
    "validate": Command("Evaluate a checkpoint on the validation split.", f"--config {DIGITS} --ckpt_path last"),
    "test": Command("Evaluate a checkpoint and its branches on the test split.", f"--config {DIGITS} --ckpt_path last"),
    "predict": Command(
        "Classify images with a run, a checkpoint or an export.", f"{RUN} photos", "hsakd_pl.commands.predict"
    ),
    "convert": Command(
        "Convert a data set to chunks that can be read from cloud storage.",
        "chunks --data ImageFolderDataModule --data.root photos",
        "hsakd_pl.commands.convert",
    ),
    "sweep": Command("Train and test with several seeds.", f"--seeds 0-2 --config {DIGITS}", "hsakd_pl.commands.sweep"),
    "report": Command(
        "Compare runs in a table or a page.", "runs --html report.html", "hsakd_pl.commands.report", False
    ),
    "bench": Command("Run the methods of a published table.", "classic --list", "hsakd_pl.commands.bench"),
    "calibrate": Command(
        "Choose a temperature and early exits on validation images.", "runs/student", "hsakd_pl.commands.calibrate"
    ),
    "export": Command(
        "Export a student as files that stand alone, with a model card.", RUN, "hsakd_pl.commands.export"
    ),
}


class ParagraphFormatter(HelpFormatter):
    """Fill each paragraph of a description separately."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options | {"width": width()})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(super(ParagraphFormatter, self)._fill_text(part, width, indent) for part in paragraphs)


class CommandParser(ArgumentParser):
    """Parser of a command, which raises its errors instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def make_parser(name: str) -> ArgumentParser:
    """Return the parser of a command that has a module of its own."""
    command = COMMANDS[name]
    module = import_module(command.module)
    parser = CommandParser(
        f"hsakd {name}",
        description=str(module.__doc__).replace("``", ""),
        epilog=f"Example: hsakd {name} {command.example}",
        formatter_class=ParagraphFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    module.add_arguments(parser)
    return parser


def parse(parser: ArgumentParser, args: list[str]) -> Namespace:
    """Parse the arguments of a command; options of ``fit``, where it takes them, are returned in ``fit_options``.

    Raises UsageError for an option of the command that is given twice: only the last one would count.
    """
    _check_unrepeated(parser, args)
    if parser.get_default("fit_options") is None:
        return parser.parse_intermixed_args(args)
    command_args: list[str] = []
    fit_options: list[str] = []
    target = command_args
    for position, arg in enumerate(args):
        previous = args[position - 1] if position else ""
        if arg.startswith("-"):
            target = command_args if arg.partition("=")[0] in parser._option_string_actions else fit_options
        elif target is fit_options and (not previous.startswith("-") or "=" in previous):
            target = command_args  # an option of fit has one value
        target.append(arg)
    options = parser.parse_intermixed_args(command_args)
    options.fit_options = fit_options
    return options


def _check_unrepeated(parser: ArgumentParser, args: list[str]) -> None:
    flags = Counter(arg.partition("=")[0] for arg in args if arg.startswith("--"))
    repeated = [flag for flag, count in flags.items() if count > 1 and flag in parser._option_string_actions]
    if repeated:
        raise UsageError(f"{', '.join(repeated)} is given more than once: give it once")


def front_page() -> str:
    """Return the help of the program: each command with an example."""
    lines = ["usage: hsakd COMMAND [OPTIONS]     (or: python main.py, python -m hsakd_pl)", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<9} {command.summary}")
        lines.append(f"{'':12}hsakd {name} {command.example}")
    more = (
        "More: hsakd COMMAND --help; hsakd fit --model.help CLASS or --data.help CLASS shows the options of a class; "
        "--debug, after any command, shows the traceback of an error; hsakd --version."
    )
    return "\n".join([*lines, "", fill(more, width())])


def width() -> int:
    """Return the number of characters in a line of help."""
    return min(shutil.get_terminal_size().columns, WIDEST)
