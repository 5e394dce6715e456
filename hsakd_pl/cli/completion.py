"""What a shell may complete, for shtab: shtab --shell=bash --prog=hsakd hsakd_pl.cli.completion.parser."""

from argparse import Action, ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

from hsakd_pl.cli.commands import COMMANDS, make_parser
from hsakd_pl.cli.help import class_names, first_sentence
from hsakd_pl.cli.lightning_cli import HSAKDCLI, command_parsers
from hsakd_pl.networks import list_networks

NETWORKS = ("model.network", "model.teacher")
FILES = ("config", "ckpt_path", "model.weights", "model.teacher_weights", "trainer.default_root_dir", "data.root")
POSITIONAL_FILES = ("source", "images", "tables")


def parser() -> ArgumentParser:
    """Return a parser of all commands with their options, whose shell's script needs no Python when it completes."""
