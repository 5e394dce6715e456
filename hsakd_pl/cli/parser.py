"""The parser of ``fit``, ``validate``, ``test`` and ``predict``, and command lines to show to the user."""

import inspect
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger

from hsakd_pl.cli.configuration import MODE
from hsakd_pl.cli.formatter import OptionFormatter
from hsakd_pl.files import local_path

if find_spec("pl_bolts"):
    import_module("hsakd_pl.integrations.bolts")  # so that a configuration may name what is in it
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning's would fetch what a configuration names


USUAL: dict[str, Any] = {
    "parser_mode": MODE,
    "exit_on_error": False,
    "formatter_class": OptionFormatter,
    "allow_abbrev": False,
}


class Parser(LightningArgumentParser):
    """Lightning's parser, which reads YAML carefully, raises its errors, and makes ``save_dir`` of loggers optional."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **USUAL | kwargs)

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(theclass, *args, **kwargs)
        if isinstance(theclass, type) and issubclass(theclass, Logger):
            for action in self._actions:
                if action.dest == "save_dir":
                    action.required = False
                    action.default = ""
                    getattr(self, "required_args", set()).discard("save_dir")  # where older releases keep it
        if isinstance(theclass, type) and issubclass(theclass, pl.LightningModule | pl.LightningDataModule):
            self._require_untyped(theclass, set(added) - set(kwargs.get("linked_targets") or ()))
        return added

    def _require_untyped(self, kind: type, options: set[str]) -> None:
        """Require the options of a class that have neither type nor default, whose default for jsonargparse is None."""
        parameters = inspect.signature(kind).parameters
        for action in self._actions:
            parameter = parameters.get(action.dest.rpartition(".")[2])
            if parameter is None or action.dest not in options:
                continue
            if parameter.annotation is parameter.default is inspect.Parameter.empty:
                action.required = True
                older_releases: set[str] = getattr(self, "required_args", set())
                older_releases.add(action.dest)


def run_folder(trainer: Any) -> Path:
    """Return the folder of a run: ``default_root_dir`` of the trainer's options, or ``runs``."""
    return local_path("trainer.default_root_dir", trainer.default_root_dir or "runs")


def program() -> list[str]:
    """Return the words with which this program was called."""
    path = Path(sys.argv[0])
    names = {"hsakd": ["hsakd"], "__main__": ["python", "-m", "hsakd_pl"]}
    return names.get(path.stem, ["python", str(path)])


def resume_command(args: list[str]) -> str:
    """Return the command line that resumes the run that was started with ``args``."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif arg == "--ckpt_path":
            skip = True
        elif not arg.startswith("--ckpt_path="):
            kept.append(arg)
    return shlex.join([*program(), *kept, "--ckpt_path", "last"])
