"""The methods whose steps are compared, with the constants that the bench trains them with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import Case
from hsakd_pl.recipes import ALL_RECIPES, BENCH_TABLES, read_table

TABLES = ("classic", "newer", "views", "other-protocols")  # of the bench, the first that has a method counts
# Options that do not change the work of a step
RATES = ("lr", "nesterov", "milestones", "weight_warmup_epochs", "decay_start", "decay_epochs")
COST_FILE = "costs.npy"  # of WKD, which would otherwise compute its costs from all images


class Entry(NamedTuple):
    """A row of the table of costs: its name, and class and options of the module."""

    name: str
    class_name: str
    arguments: dict[str, Any]


def entries(cases: Sequence[Case]) -> list[Entry]:
    """Return what is measured of each case: a line of the bench with its constants, or the class with its defaults."""
    found = []
    for case in cases:
        lines = constants(f"hsakd_pl.{case.class_name}", "-".join(case.networks))
        name = case.class_name.removeprefix("methods.").removesuffix("Module")
        for line, options in (lines or {name: {}}).items():
            arguments = options | case.arguments
            if case.method == "wkd":
                arguments["cost_file"] = COST_FILE
            found.append(Entry(line, case.class_name, arguments))
    return found


def constants(class_path: str, pair: str) -> dict[str, dict[str, Any]]:
    """Return the constants of a class in the first table of the bench that has it, by the names of its lines.

    They are those of the pair of networks, or of the first pair if no line has it.
    """
    for table in TABLES:
        lines: dict[str, dict[str, dict[str, Any]]] = {}
        for cell in read_table(BENCH_TABLES[table], ALL_RECIPES).cells:
            model = ALL_RECIPES[cell.recipe].config["model"]
            if model["class_path"] == class_path:
                lines.setdefault(cell.method.partition(" (")[0], {})[cell.pair] = model["init_args"]
        of_pair = {line: options[pair] for line, options in lines.items() if pair in options}
        chosen = of_pair or {line: next(iter(options.values())) for line, options in lines.items()}
        if chosen:
            return {line: work_options(options) for line, options in chosen.items()}
    return {}


def work_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a module that may change the work of a step, without networks and weight files."""
    return {
        name: value
        for name, value in options.items()
        if name not in RATES and not name.startswith(("network", "teacher")) and not str(value).startswith("runs/")
    }
