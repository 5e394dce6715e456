"""What is measured: the methods and networks of the paper's tables, and any other of the registry, by name."""

from operator import attrgetter
from typing import Any, NamedTuple

import hsakd_pl
from hsakd_pl import HSAKDModule, methods
from hsakd_pl.errors import UsageError
from hsakd_pl.recipes import PAIRS, PEERS, TEACHERS

# method -> class of the library, and the form of its name
METHODS = {
    "student": ("StudentModule", "student:<teacher>-<student>"),
    "teacher": ("TeacherModule", "teacher:<net>"),
    "mutual": ("MutualModule", "mutual:<net>"),
    "probe": ("LinearProbeModule", "probe:<net>"),
}
LR = 1e-6  # of all cases: it does not change the speed, but keeps the loss finite, with an untrained teacher too
COSTS = "method-costs"  # of all methods to compare with, beside each other
FORMS = ", ".join([*(form for _, form in METHODS.values()), f"{COSTS}:<teacher>-<student>, or one of its methods"])
# What those of them take of a teacher and a student that do not take both: two peers are twins of the student.
PARTS = {"dml": slice(1, 2), "sskdprojection": slice(0, 1)}
COMPARED = {
    name.removesuffix("Module").lower(): f"methods.{name}"
    for name in ["KDModule", *sorted(methods.__all__)]
    if name.endswith("Module") and name != "DistilledModule"
}
METHODS |= {
    method: (kind, f"{method}:{'<net>' if method in PARTS else '<teacher>-<student>'}")
    for method, kind in {**COMPARED, COSTS: ""}.items()
}


class Case(NamedTuple):
    """A method and its networks by name: a student after its teacher; for mutual one, which learns with its twin."""

    method: str
    networks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}:{'-'.join(self.networks)}"

    @property
    def beside(self) -> list["Case"]:
        """For a method to compare with, the cases that are measured in turns, plain KD first; none for others."""
        if self.method == COSTS:
            return [Case(method, self.networks[PARTS.get(method, slice(2))]) for method in COMPARED]
        kd = [Case("kd", self.networks)] if len(self.networks) == 2 else []
        return list(dict.fromkeys([*kd, self])) if self.method in COMPARED else []

    @property
    def arguments(self) -> dict[str, Any]:
        """What the module takes, by the names of its options."""
        twins = self.method in ("mutual", "dml")
        networks = {"networks": [*self.networks * 2]} if twins else {"network": self.networks[-1]}
        teacher = {"teacher": self.networks[0], "teacher_weights": "random"} if len(self.networks) == 2 else {}
        weights = {"probe": "weights", "sskdprojection": "weights", "sskd": "projection_weights"}
        return {**networks, "lr": LR, **teacher, **({weights[self.method]: "random"} if self.method in weights else {})}

    def config(self, **options: Any) -> dict[str, Any]:
        """Give the case as a configuration of the command line has it under ``model``."""
        return {"class_path": f"hsakd_pl.{METHODS[self.method][0]}", "init_args": {**self.arguments, **options}}

    def module(self, **options: Any) -> HSAKDModule:
        """Build the case as a module, with fresh weights."""
        return attrgetter(METHODS[self.method][0])(hsakd_pl)(**self.arguments, **options)


NAMED = (
    *(Case("student", pair) for pair in PAIRS),
    *(Case("teacher", (network,)) for network in TEACHERS),
    *(Case("mutual", (network,)) for network in PEERS),
    Case("probe", ("mobilenetv2",)),
)
METHOD_COSTS = Case(COSTS, ("wrn_40_2", "wrn_16_2"))


def find(name: str) -> Case:
    """Find the case of a name such as ``student:resnet14-resnet8``; UsageError where it has another form."""
    method, _, networks = name.partition(":")
    case = METHOD_COSTS if name == COSTS else Case(method, tuple(networks.split("-")))
    if method not in METHODS or len(case.networks) != METHODS[method][1].count("<"):
        raise UsageError(f"case {name!r}: write it as {FORMS}; --list shows those of the paper")
    return case
