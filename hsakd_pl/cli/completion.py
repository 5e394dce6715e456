"""What a shell may complete, for shtab: shtab --shell=bash --prog=hsakd hsakd_pl.cli.completion.parser."""

from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

from hsakd_pl.cli.commands import COMMANDS, PICTURES, parser_of
from hsakd_pl.cli.help import OWN, TRAINER, classes
from hsakd_pl.cli.signatures import Option, networks, options

PASSED_ON = ("sweep", "bench")  # take the options of fit as well
NETWORKS = ("model.network", "model.teacher")
FILES = ("config", "ckpt_path", "model.weights", "model.teacher_weights", "trainer.default_root_dir", "data.root")


def parser() -> ArgumentParser:
    """Make a parser of all commands with their options, whose shell's script needs no Python when it completes."""
    top = ArgumentParser("hsakd")
    commands = top.add_subparsers()
    for name, command in COMMANDS.items():
        module = PICTURES if name == "predict" else command.module
        parents = [parser_of(name, module)] if module else []
        own = commands.add_parser(name, help=command.does, parents=parents, conflict_handler="resolve")
        if not command.module or name in PASSED_ON:
            _add_options_of_fit(own)
        for action in own._actions:
            if action.type is Path or action.dest in (*FILES, "source", "pictures"):
                action.complete = _files()  # type: ignore[attr-defined]
    return top


def _add_options_of_fit(parser: ArgumentParser) -> None:
    taken: dict[str, Option] = dict(OWN)
    choices: dict[str, list[str]] = {name: networks() for name in NETWORKS}
    for group in ("model", "data"):
        choices[group] = [*classes(group)]
        taken[group] = Option("", "")
        for path in classes(group).values():
            taken |= {f"{group}.{name}": option for name, option in options(path).items()}
    taken |= {f"trainer.{name}": option for name, option in options(TRAINER).items()}
    for name, option in taken.items():
        flags = ["-c", "--config"] if name == "config" else [f"--{name}"]
        switch = ["true", "false"] if option.default in ("true", "false") else None
        if not {*flags} & {*parser._option_string_actions}:
            parser.add_argument(
                *flags, dest=name, choices=choices.get(name, switch), help=option.sentence.replace("%", "%%")
            )


def _files() -> Any:
    return import_module("shtab").FILE  # which calls this
