"""In what the options of a run differ from those of its recipe."""

import inspect
import re
from collections.abc import Mapping
from pydoc import locate
from typing import Any

import pytorch_lightning as pl

from hsakd_pl.recipes import Recipe

Differences = dict[str, tuple[Any, Any]]  # option -> what the recipe says, and what ran
# Options that a machine calls for, and that leave the experiment what it is; a hash tells them apart all the same
MACHINE = re.compile(
    r"trainer\.(accelerator|strategy|devices|num_nodes|precision|benchmark|deterministic|plugins|use_distributed_sampler)"
    r"|data\.init_args\.(num_workers|decode_on_device|on_error)$|model\.init_args\.(fast|compile|branch_metrics_every|num_classes)"
)


def expected(recipe: Recipe) -> dict[str, Any]:
    """Return the options that a run of a recipe has: those of the recipe, and the defaults of its classes."""
    options = {"cache_features": False} | _defaults("trainer", pl.Trainer)
    options |= {f"trainer.{name}": value for name, value in recipe.trainer.items()}
    for part, content in (("model", recipe.model), ("data", recipe.data)):
        options[f"{part}.class_path"] = content["class_path"]
        path = f"{part}.init_args"
        options |= _defaults(path, locate(content["class_path"]))
        options |= {f"{path}.{name}": _plain(value) for name, value in content.get("init_args", {}).items()}
    return options


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Options of ``now`` that are not as they were ``before``, where they were nothing if they were not there."""
    pairs = {option: (before.get(option), now[option]) for option in sorted(now)}
    return {option: pair for option, pair in pairs.items() if pair[0] != pair[1]}


def _defaults(path: str, theclass: Any) -> dict[str, Any]:
    parameters = inspect.signature(theclass).parameters.values()
    return {f"{path}.{each.name}": _plain(each.default) for each in parameters if each.default is not each.empty}


def _plain(value: Any) -> Any:
    """As a run's options have it: sequences are text there."""
    return str(list(value)) if isinstance(value, list | tuple) else value
