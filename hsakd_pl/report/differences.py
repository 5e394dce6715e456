"""The differences between the options of a run and those of its recipe."""

import inspect
from collections.abc import Mapping
from pydoc import locate
from typing import Any

from hsakd_pl.recipes import Recipe
from hsakd_pl.records.options import Role, rule_of

Differences = dict[str, tuple[Any, Any]]  # option -> values in the recipe and in the run


def expected(recipe: Recipe) -> dict[str, Any]:
    """Return the options that a run of a recipe has: those of the recipe, and the defaults of its classes."""
    import pytorch_lightning as pl  # takes seconds, and runs without a recipe do not need it

    options = {"cache_features": False} | _defaults("trainer", pl.Trainer)
    options |= {f"trainer.{name}": value for name, value in recipe.trainer.items()}
    for part, content in (("model", recipe.model), ("data", recipe.data)):
        path = f"{part}.init_args"
        options[f"{part}.class_path"] = content["class_path"]
        options |= _defaults(path, locate(content["class_path"]))
        options |= {f"{path}.{name}": _as_recorded(value) for name, value in content.get("init_args", {}).items()}
    return options


def is_of_machine(option: str) -> bool:
    """Return True for an option that leaves the experiment the same, although it belongs to the protocol."""
    return rule_of(option).role is Role.MACHINE


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Return the options of ``now`` whose values differ from ``before``, where a missing option counts as None."""
    differences = {}
    for option in sorted(now):
        if before.get(option) != now[option]:
            differences[option] = (before.get(option), now[option])
    return differences


def _defaults(path: str, theclass: Any) -> dict[str, Any]:
    """Return the defaults of a class by option."""
    defaults = {}
    for parameter in inspect.signature(theclass).parameters.values():
        if parameter.default is not parameter.empty:
            defaults[f"{path}.{parameter.name}"] = _as_recorded(parameter.default)
    return defaults


def _as_recorded(value: Any) -> Any:
    """Convert a value as a run records it: sequences are text there."""
    return str(list(value)) if isinstance(value, list | tuple) else value
