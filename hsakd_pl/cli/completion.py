"""Shell completion by shtab: ``shtab --shell=bash --prog=hsakd hsakd_pl.cli.completion.parser``."""

from argparse import Action, ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser

from hsakd_pl.cli.commands import COMMANDS, make_parser
from hsakd_pl.cli.formatter import first_sentence, without_markup
from hsakd_pl.cli.help import classes, network_names
from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.cli.parser import Parser

NETWORKS = ("model.network", "model.teacher")
FILES = ("config", "ckpt_path", "model.weights", "model.teacher_weights", "trainer.default_root_dir", "data.root")
POSITIONAL_FILES = ("source", "images", "tables")


def parser() -> ArgumentParser:
    """Return a parser of all commands with their options, whose shell's script needs no Python when it completes."""
    program = ArgumentParser("hsakd")
    commands = program.add_subparsers()
    lightning_parsers = _lightning_parsers()
    class_actions = [*_class_actions("model"), *_class_actions("data")]
    for name, command in COMMANDS.items():
        parents = [make_parser(name)] if command.module else []
        command_parser = commands.add_parser(
            name, help=command.summary, parents=parents, conflict_handler="resolve", add_help=not parents
        )
        takes_fit_options = bool(parents) and parents[0].get_default("fit_options") is not None
        if name in lightning_parsers or takes_fit_options:
            lightning_parser = lightning_parsers.get(name, lightning_parsers["fit"])
            for action in [*lightning_parser._actions, *class_actions]:
                _add_option(command_parser, action)
        for action in command_parser._actions:
            if action.type is Path or action.dest in (*FILES, *POSITIONAL_FILES):
                action.complete = import_module("shtab").FILE  # type: ignore[attr-defined]  # read by shtab
    return program


def _add_option(command_parser: ArgumentParser, action: Action) -> None:
    """Add an option of jsonargparse as a plain one, unless the parser has it already."""
    flags = [flag for flag in action.option_strings if not flag.endswith("+")]
    if not flags or {*flags} & {*command_parser._option_string_actions}:
        return
    choices: list[str] | None = None
    if action.dest in ("model", "data"):
        choices = list(classes(action.dest))
    elif action.dest in NETWORKS:
        choices = network_names()
    elif getattr(action, "_typehint", None) is bool:
        choices = ["true", "false"]
    sentence = without_markup(first_sentence(action.help or "")).replace("%", "%%")
    command_parser.add_argument(*flags, dest=action.dest, choices=choices, help=sentence)


def _class_actions(group: str) -> Iterator[Action]:
    """Yield the options of all classes of the package for ``--model`` or ``--data``."""
    for kind in classes(group).values():
        class_parser = Parser()
        class_parser.add_class_arguments(kind, group)
        yield from class_parser._actions


class _Built(Exception):  # noqa: N818 it is not an error
    """Carry the parsers out of a LightningCLI, which would parse next."""

    def __init__(self, parsers: dict[str, LightningArgumentParser]) -> None:
        self.parsers = parsers


class _ParsersOnly(HSAKDCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Built(self._subcommand_parsers)


def _lightning_parsers() -> dict[str, LightningArgumentParser]:
    """Return the parsers of ``fit``, ``validate``, ``test`` and ``predict``."""
    try:
        _ParsersOnly(args=[])
    except _Built as built:
        return built.parsers
    raise AssertionError("LightningCLI did not parse")
