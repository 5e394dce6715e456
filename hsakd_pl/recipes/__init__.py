"""The experiments of the paper and of the field's tables: what they are, and what was published of them."""

from collections.abc import Sequence
from pathlib import Path

from hsakd_pl.recipes.bench import KNOWN, TABLES, Cell, Table, read_table
from hsakd_pl.recipes.paper import PAIRS, PEERS, RECIPES, SMALL_LR, TEACHERS, Recipe

OVERLAYS = Path(__file__).with_name("trainer")  # configurations of machines and loggers, laid over a recipe

__all__ = [
    "KNOWN",
    "OVERLAYS",
    "PAIRS",
    "PEERS",
    "RECIPES",
    "SMALL_LR",
    "TABLES",
    "TEACHERS",
    "Cell",
    "Recipe",
    "Table",
    "read_table",
    "recipe_of",
]


def recipe_of(configs: Sequence[str]) -> str | None:
    """The recipe whose name one of these files bears, ``.../cifar100/baseline_resnet20.yaml`` for example."""
    names = ["/".join(Path(config).with_suffix("").parts[-2:]) for config in configs]
    return next((name for name in names if name in KNOWN), None)
