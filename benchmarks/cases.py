"""What is measured: the methods and networks of the paper's tables, and any other of the registry, by name."""

from typing import Any, NamedTuple

import hsakd_pl
from hsakd_pl import HSAKDModule
from hsakd_pl.errors import UsageError

# Teacher and student: Table 1 of the paper
PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("wrn_40_2", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
)
TEACHERS = ("wrn_40_2", "resnet56", "resnet32x4", "vgg13", "resnet50")
PEERS = (
    *("wrn_40_2", "wrn_40_1", "resnet56", "resnet32x4"),
    *("vgg13", "mobilenetv2", "shufflenetv1", "shufflenetv2"),
)

# lr = 0.01 where the trained network is one of these, as in the published recipes
SMALL_LR = ("mobilenetv2", "shufflenetv1", "shufflenetv2")

# method -> class of the library, and the form of its name
CLASSES = {
    "student": "StudentModule",
    "teacher": "TeacherModule",
    "mutual": "MutualModule",
    "probe": "LinearProbeModule",
}
FORMS = {
    "student": "student:<teacher>-<student>",
    "teacher": "teacher:<net>",
    "mutual": "mutual:<net>",
    "probe": "probe:<net>",
}


class Case(NamedTuple):
    """A method and its networks by name: a student after its teacher; for mutual one, which learns with its twin."""

    method: str
    networks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}:{'-'.join(self.networks)}"

    @property
    def trained(self) -> str:
        """Name of the network that learns."""
        return self.networks[-1]

    @property
    def recipe(self) -> dict[str, float]:
        """``lr`` and ``weight_decay``: they do not change the speed, but keep the loss finite."""
        if self.method == "probe":
            return {"lr": 0.1, "weight_decay": 0.0}
        return {"lr": 0.01 if self.trained in SMALL_LR else 0.05, "weight_decay": 5e-4}

    def config(self, **options: Any) -> dict[str, Any]:
        """The case as a configuration of the command line has it under ``model``."""
        networks: dict[str, Any] = {"network": self.trained}
        if self.method == "student":
            networks["teacher"] = self.networks[0]
        if self.method == "mutual":
            networks = {"networks": [self.trained, self.trained]}
        return {"class_path": f"hsakd_pl.{CLASSES[self.method]}", "init_args": {**networks, **self.recipe, **options}}

    def module(self, **options: Any) -> HSAKDModule:
        """The case as a module, with fresh weights."""
        return getattr(hsakd_pl, CLASSES[self.method])(**self.config(**options)["init_args"])


NAMED = (
    *(Case("student", pair) for pair in PAIRS),
    *(Case("teacher", (network,)) for network in TEACHERS),
    *(Case("mutual", (network,)) for network in PEERS),
    Case("probe", ("mobilenetv2",)),
)


def find(name: str) -> Case:
    """The case of a name such as ``student:resnet14-resnet8``; UsageError where it has another form."""
    method, _, networks = name.partition(":")
    case = Case(method, tuple(networks.split("-")))
    if method not in CLASSES or len(case.networks) != (2 if method == "student" else 1):
        raise UsageError(f"case {name!r}: write it as {', '.join(FORMS.values())}; --list shows those of the paper")
    return case
