"""Write hsakd_pl/methods/index.md, the table of the comparison methods, from the classes themselves.

python scripts/methods_index.py
"""

import csv
import inspect
from pathlib import Path
from typing import Any

import torch

from hsakd_pl import HSAKDModule, methods
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.recipes import BENCH_TABLES

INDEX = Path(methods.__file__).with_name("index.md")
PAIR = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random", "num_classes": 10}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CRDModule": PAIR | {"samples": 16},
    "WKDModule": PAIR | {"feature_weight": 0.1},
    "DMLModule": {"networks": ["resnet8", "resnet8"], "num_classes": 10},
    "SSKDModule": PAIR | {"projection_weights": "random"},
    "SSKDProjectionModule": {"network": "resnet14", "weights": "random", "num_classes": 10},
}
TABLES = ("classic", "newer")  # of equal protocol
COLUMN = "wrn_40_2-wrn_16_2"  # the pair of networks whose published accuracy is the example
HEAD = f"""# The methods

Written by `scripts/methods_index.py` from the classes; `tests/test_methods_index.py` compares. Options are those that a
class declares itself; `help()` shows all. The number is the published top-1 accuracy on CIFAR-100 in percent,
{COLUMN}.

| class | loss functions in its file | method | uses | terms | options | number |
|---|---|---|---|---|---|---|
"""


def method_classes() -> list[type[HSAKDModule]]:
    """Return all public methods, without their base."""
    public = [getattr(methods, name) for name in methods.__all__]
    modules = [member for member in public if inspect.isclass(member) and issubclass(member, HSAKDModule)]
    return [module for module in modules if module is not methods.DistilledModule]


def loss_functions(method: type[HSAKDModule]) -> list[str]:
    """Return the names of the public losses in a method's file."""
    public = [getattr(methods, name) for name in methods.__all__]
    in_file = [member.__name__ for member in public if member.__module__ == method.__module__]
    return [name for name in in_file if name.endswith(("_loss", "_terms"))] or ["ops.kd_loss"]


def trained_on(method: type[HSAKDModule]) -> tuple[set[str], list[str]]:
    """Return the outputs of the network that a method uses, and its loss terms, from one step of a small module."""
    used: set[str] = set()

    class RecordedOutput(NetworkOutput):
        def __getattribute__(self, name: str) -> Any:
            if name in NetworkOutput._fields:
                used.add(name)
            return super().__getattribute__(name)

    torch.manual_seed(0)
    module = method(**ARGUMENTS.get(method.__name__, PAIR))
    outputs = module.network.outputs
    module.network.outputs = lambda images: RecordedOutput(*outputs(images))
    batch = [torch.rand(8 if module.needs_strong_view else 4, 3, 32, 32), torch.arange(4)]
    if method is methods.CRDModule:
        batch.append(torch.arange(8).view(4, 2))
    if method is methods.WKDModule:
        module.cost = 1 - torch.eye(10)
    terms = module.losses(batch)
    return used - {"joint_logits"}, list(terms)


def own_options(method: type[HSAKDModule]) -> list[str]:
    """Return the options that a class declares, with their defaults."""
    parameters = inspect.signature(vars(method)["__init__"]).parameters.values()
    return [f"{option.name}={option.default}" for option in parameters if option.default is not option.empty]


def published_numbers() -> dict[str, str]:
    """Return the published accuracies of the example pair by class path."""
    numbers = {}
    for table in TABLES:
        with BENCH_TABLES[table].open(newline="") as lines:
            numbers |= {line["class"]: line[COLUMN].split(";")[0] or "-" for line in csv.DictReader(lines)}
    return numbers


def index() -> str:
    """Return the table as Markdown."""
    numbers = published_numbers()
    lines = []
    for method in method_classes():
        used, terms = trained_on(method)
        docstring = inspect.getdoc(inspect.getmodule(method)) or ""
        cells = [
            f"`{method.__name__}`",
            ", ".join(f"`{name}`" for name in loss_functions(method)),
            docstring.splitlines()[0].split(":")[0].split("; its loss")[0].rstrip("."),
            ", ".join(sorted(used)),
            ", ".join(f"`{name}`" for name in terms),
            ", ".join(f"`{option}`" for option in own_options(method)),
            numbers.get(f"hsakd_pl.methods.{method.__name__}", "-"),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    INDEX.write_text(index())
