"""Read and write configurations, and check the options that change when a run is resumed."""

import pydoc
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace, set_dumper, set_loader
from pytorch_lightning.cli import SaveConfigCallback

from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text, replacing
from hsakd_pl.files.careful import load_yaml
from hsakd_pl.modules.trainers import is_trial
from hsakd_pl.records.formats import CONFIG_FILE, HISTORY_FILE
from hsakd_pl.records.options import rule_of

COMPLETE = {"seed_everything", "trainer", "model", "data", "ckpt_path"}  # what the file of every run contains
WRITTEN = ("best.ckpt", HISTORY_FILE, "curves.png")  # by a fit, after its configuration
MODE = "strict yaml"  # name under which jsonargparse finds the package's reader


class _TextDumper(yaml.SafeDumper):
    """Write members of enumerations of strings as strings, which PyYAML refuses."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_str(text.value if isinstance(text, Enum) else str(text))


_TextDumper.add_multi_representer(str, _represent_text)


def dump_yaml(content: Any) -> str:
    """Return plain data as YAML, in its order."""
    return yaml.dump(content, Dumper=_TextDumper, default_flow_style=False, sort_keys=False)


set_loader(MODE, load_yaml, (yaml.YAMLError,))
set_dumper(MODE, dump_yaml)


def options_of(config: Namespace) -> dict[str, Any]:
    """Return the values that a configuration sets: dotted option -> value, as plain data."""
    return dict(_flat(config, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = vars(value) if isinstance(value, Namespace) else value
    if isinstance(items, Mapping) and items:
        for key, item in items.items():
            yield from _flat(item, f"{path}.{key}".strip("."))
    else:
        yield path, value if isinstance(value, str | int | float | bool | None) else str(value)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options that a resumed run changes: option -> (value of the run that wrote its checkpoint, value now).

    Raises UsageError for an option that can no longer take effect.
    """
    differing = {
        option: (before.get(option), now.get(option))
        for option in sorted(before.keys() | now.keys())
        if before.get(option) != now.get(option) and rule_of(option).resumes != "free"
    }
    for option, (old, new) in differing.items():
        if rule_of(option).resumes == "kept":
            raise UsageError(
                f"{option} is {new}, but the resumed run was started with {old} and keeps it: leave the option "
                "unchanged, or start a new run with model.init_args.weights in another folder"
            )
    return differing


class ConfigWriter(SaveConfigCallback):
    """Write the configuration of a fit, overrides included, into the run's folder: ``config.yaml``.

    It is written when training starts: one that has nothing left to train keeps the configuration that it ran with.
    """

    def __init__(self, parser: Any, config: Namespace, **options: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **options)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not (is_trial(trainer) or trainer.barebones):
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file, replacing that of an earlier start."""
        with replacing(Path(trainer.default_root_dir, self.config_filename)) as file:
            file.write(dump(self.parser, self.config))


def check_replaceable(folder: Path) -> None:
    """Raise UsageError if a fit would replace files in a folder that no run wrote.

    A run writes its configuration first. One that was ended at once leaves nothing else.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        for name in WRITTEN:
            if (folder / name).exists():
                raise _foreign(folder / name, "was not written by a run")
        return
    try:
        content = load_yaml(read_text(path))
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict) or not content.keys() >= COMPLETE:
        raise _foreign(path, "is not the configuration of a run")


def _foreign(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} {reason}, and the fit would replace it: rename it, or name another folder with "
        "--trainer.default_root_dir"
    )


def dump(parser: Any, config: Namespace) -> str:
    """Return a configuration as YAML that reads back as the same configuration.

    jsonargparse fails on the members of an enumeration that are strings, and replaces a value by an error message where
    it cannot name it: text that an option takes as well as a function, and functions without an import path, which only
    defaults are. Text, lists and mappings stay as they are, and such a default is left out.
    """
    text = parser.dump(config, format=MODE, skip_none=False)
    dumped = yaml.safe_load(text)
    readable = _readable(dumped, config)
    if readable == dumped:
        return text
    return dump_yaml(readable)


def _readable(dumped: Any, value: Any) -> Any:
    """Return what was dumped of a value, with its text as it was and without functions that cannot be imported."""
    items = vars(value) if isinstance(value, Namespace) else value
    if isinstance(dumped, dict) and isinstance(items, dict):
        kept = {key: item for key, item in dumped.items() if _has_path(items.get(key))}
        return {key: _readable(item, items.get(key)) for key, item in kept.items()}
    if isinstance(dumped, list) and isinstance(items, list) and len(dumped) == len(items):
        return [_readable(item, original) for item, original in zip(dumped, items, strict=True)]
    is_plain = isinstance(value, str | dict | list) and not isinstance(value, Enum)
    return value if is_plain and isinstance(dumped, str) else dumped


def _has_path(value: Any) -> bool:
    """Return False for a function or callable object that no import path leads to."""
    if not callable(value) or isinstance(value, Namespace):
        return True
    return pydoc.locate(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}") is value
