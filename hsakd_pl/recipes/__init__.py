"""The experiments of the paper and of the field's tables, with their published numbers."""

from collections.abc import Sequence
from pathlib import Path

from hsakd_pl.recipes.bench import ALL_RECIPES, BENCH_TABLES, Cell, Table, check_cells, read_table
from hsakd_pl.recipes.paper import PAIRS, PEERS, RECIPES, TEACHERS
from hsakd_pl.recipes.recipe import SMALL_LR_NETWORKS, Recipe

OVERLAYS = Path(__file__).with_name("trainer")  # configurations of machines and loggers, laid over a recipe

__all__ = [
    "ALL_RECIPES",
    "BENCH_TABLES",
    "OVERLAYS",
    "PAIRS",
    "PEERS",
    "RECIPES",
    "SMALL_LR_NETWORKS",
    "TEACHERS",
    "Cell",
    "Recipe",
    "Table",
    "check_cells",
    "read_table",
    "recipe_of",
]


def recipe_of(configs: Sequence[str]) -> str | None:
    """Return the recipe that one of these files is named after, such as ``.../cifar100/baseline_resnet20.yaml``."""
    names = ["/".join(Path(config).with_suffix("").parts[-2:]) for config in configs]
    return next((name for name in names if name in ALL_RECIPES), None)
