"""Read and write configurations, and check the options that change when a run is resumed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace, set_loader
from pytorch_lightning.cli import SaveConfigCallback

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.files.careful import load_yaml
from hsakd_pl.records.options import rule_of

MODE = "strict yaml"  # name under which jsonargparse finds the package's reader

set_loader(MODE, load_yaml, (yaml.YAMLError,))


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
    """Write the configuration of a fit, overrides included, into the run's folder: ``config.yaml``."""

    def __init__(self, parser: Any, config: Namespace, **options: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **options)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file, replacing that of an earlier start."""
        # Lightning sets fast_dev_run without declaring it
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with replacing(Path(trainer.default_root_dir, self.config_filename)) as file:
                file.write(self.parser.dump(self.config, skip_none=False))
