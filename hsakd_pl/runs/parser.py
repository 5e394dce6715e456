"""How the command line reads its arguments, and says in one line what is wrong with them."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger

from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path, read_text
from hsakd_pl.files.careful import load_yaml
from hsakd_pl.runs.configuration import MODE

set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning's would fetch what a configuration names
MOST_BYTES = 100_000  # of a configuration; those of this package have 1,000
MOST_SHOWN = 800  # of what a message quotes


class Parser(LightningArgumentParser):
    """Lightning's, with YAML read with care, short errors, and loggers whose folder may be left out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "parser_mode": MODE})

    def error(self, message: str, *args: Any) -> NoReturn:  # type: ignore[override]
        """Report what the configuration gets wrong, without the pages of usage that the parser puts around it."""
        if self.exit_on_error:
            one_error(message)
        super().error(message, *args)

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(theclass, *args, **kwargs)
        if isinstance(theclass, type) and issubclass(theclass, Logger):
            for action in self._actions:
                if action.dest == "save_dir":
                    action.required, action.default = False, ""
                    getattr(self, "required_args", set()).discard("save_dir")  # where older releases keep it
        return added


def one_error(message: str) -> NoReturn:
    """Report what the configuration gets wrong, without pages of usage."""
    if "No module named 'pl_bolts'" in message:
        import_module("hsakd_pl.integrations.bolts")  # raises the error that says how to install it
    if unknown := re.search(r"class_path '(\S+)':\s+Option '(\S+)' is not accepted", message):
        group = "data" if "DataModule" in unknown[1] else "model"
        message = f"{unknown[1]} has no option {unknown[2]!r}: 'fit --{group}.help {unknown[1]}' lists those it has"
    shown = message if len(message) <= MOST_SHOWN else f"{message[:MOST_SHOWN]} ..."
    print(f"error: {shown}", file=sys.stderr)
    raise SystemExit(2)


def check_files(args: list[str]) -> None:
    """Read configurations once, so that one which is none is an error that names it."""
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        path = Path(flag.partition("=")[2] if flag.startswith("--config=") else value)
        if (flag in ("-c", "--config") or flag.startswith("--config=")) and path.exists():
            try:
                content = load_yaml(read_text(path, MOST_BYTES))
            except yaml.YAMLError as error:
                raise UsageError(f"{path} is no valid YAML: {error}") from error
            if not isinstance(content, dict):
                raise UsageError(
                    f"{path} is no configuration, which has options by name: it is a {type(content).__name__}"
                )


def folder_of(trainer: Any) -> Path:
    """Where a run's files go: ``default_root_dir``, or ``runs``."""
    return local_path("trainer.default_root_dir", trainer.default_root_dir or "runs")


def program() -> list[str]:
    """How this program was called."""
    path = Path(sys.argv[0])
    known = {"hsakd": ["hsakd"], "__main__": ["python", "-m", "hsakd_pl"]}
    return known.get(path.stem, ["python", str(path)])


def again(args: list[str]) -> str:
    """The command line that continues the run that was started with ``args``."""
    without = re.sub(r"\0--ckpt_path[\0=][^\0]*", "", "".join(f"\0{arg}" for arg in args))
    return shlex.join([*program(), *without.split("\0")[1:], "--ckpt_path", "last"])
