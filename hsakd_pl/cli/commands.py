"""The commands, and the parsers of those that stand beside LightningCLI's, made without importing what they do."""

import ast
import shutil
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from hsakd_pl.cli.signatures import plain
from hsakd_pl.cli.source import find, source_of, value

WIDEST = 120  # characters of a line
DIGITS = "configs/digits/teacher_joint_resnet20.yaml"
RUN = "runs/digits/teacher_joint_resnet20"
PICTURES = "hsakd_pl.commands.predict"  # with folders in place of options


class Command(NamedTuple):
    """What a command does, an example, and the module that does it, or "": LightningCLI."""

    does: str
    example: str
    module: str = ""


COMMANDS = {  # in the order in which they are needed
    "recipes": Command("List the experiments, or write them into a folder.", "configs", "hsakd_pl.commands.recipes"),
    "fit": Command("Train: everything that a run leaves lies in one folder.", f"--config {DIGITS}"),
    "validate": Command("Measure a checkpoint on the validation split.", f"--config {DIGITS} --ckpt_path last"),
    "test": Command(
        "Measure a checkpoint on the test split, with its branches.", f"--config {DIGITS} --ckpt_path last"
    ),
    "predict": Command("Find the classes of pictures, by a run or an export.", f"{RUN} photos"),
    "sweep": Command("Train and test with several seeds.", f"--seeds 0-2 --config {DIGITS}", "hsakd_pl.commands.sweep"),
    "report": Command("Compare runs, as a table or a page.", "runs --html report.html", "hsakd_pl.commands.report"),
    "bench": Command("Compare methods by the protocol of a table.", "classic --list", "hsakd_pl.commands.bench"),
    "export": Command("Write a student as files that stand alone, with a card.", RUN, "hsakd_pl.commands.export"),
}


def make_parser(name: str, module: str) -> ArgumentParser:
    """Make the parser of a command, still without arguments, from what its module says of it."""
    said = ast.get_docstring(source_of(module) or ast.Module([], [])) or ""
    description = "\n\n".join(fill(plain(paragraph), width()) for paragraph in said.split("\n\n"))
    return ArgumentParser(
        f"hsakd {name}",
        description=description,
        epilog=f"example:\n  hsakd {name} {COMMANDS[name].example}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser_of(name: str, module: str) -> ArgumentParser:
    """Make the parser of a command with the arguments that its module adds, read off its source."""
    parser, found = make_parser(name, module), find(f"{module}.command")
    for node in ast.walk(found.node) if found else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "parser.usage":
            parser.usage = ast.unparse(node.value)[2:-1].replace("{parser.prog}", parser.prog)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument":
            options = {str(each.arg): _value(module, each.value) for each in node.keywords}
            known = {option: given for option, given in options.items() if given is not ...}
            parser.add_argument(*map(ast.literal_eval, node.args), **known)
    return parser


def width() -> int:
    """Characters of a line of help."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def _value(module: str, node: ast.expr) -> Any:
    """The value of what is handed to an argument; an ellipsis where only a running program has it."""
    if ast.unparse(node) == "Path":
        return Path
    try:
        return value(module, node)
    except ValueError:
        return ...
