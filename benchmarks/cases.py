"""The cases that are measured: the pairs and networks of the paper's tables, and any others of the registry."""

from operator import attrgetter
from typing import Any, NamedTuple

import hsakd_pl
from hsakd_pl import HSAKDModule, methods
from hsakd_pl.errors import UsageError
from hsakd_pl.recipes import PAIRS, PEERS, TEACHERS

# method -> class of the library, and form of the case's name
METHODS = {
    "student": ("StudentModule", "student:<teacher>-<student>"),
    "teacher": ("TeacherModule", "teacher:<net>"),
    "mutual": ("MutualModule", "mutual:<net>"),
    "probe": ("LinearProbeModule", "probe:<net>"),
}
LR = 1e-6  # does not change the speed, but keeps the loss finite, even with an untrained teacher
COSTS = "method-costs"  # all comparison methods in turns
FORMS = ", ".join([*(form for _, form in METHODS.values()), f"{COSTS}:<teacher>-<student>, or one of its methods"])
# Part of (teacher, student) that a method takes, where that is not both; the two peers of dml equal the student.
PARTS = {"dml": slice(1, 2), "sskdprojection": slice(0, 1)}
# Option for the weights of a trained part
WEIGHTS = {"probe": "weights", "sskdprojection": "weights", "sskd": "projection_weights"}
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
    """A method and the names of its networks: teacher and student, or one; mutual learning trains it with its copy."""

    method: str
    networks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}:{'-'.join(self.networks)}"

    @property
    def compared(self) -> list["Case"]:
        """The cases that are measured in turns with a comparison method, plain KD first; none for other methods."""
        if self.method == COSTS:
            return [Case(method, self.networks[PARTS.get(method, slice(2))]) for method in COMPARED]
        kd = [Case("kd", self.networks)] if len(self.networks) == 2 else []
        return list(dict.fromkeys([*kd, self])) if self.method in COMPARED else []

    @property
    def arguments(self) -> dict[str, Any]:
        """Options of the module."""
        arguments: dict[str, Any] = {"lr": LR}
        if self.method in ("mutual", "dml"):
            arguments["networks"] = list(self.networks * 2)
        else:
            arguments["network"] = self.networks[-1]
        if len(self.networks) == 2:
            arguments |= {"teacher": self.networks[0], "teacher_weights": "random"}
        if self.method in WEIGHTS:
            arguments[WEIGHTS[self.method]] = "random"
        return arguments

    def config(self, **options: Any) -> dict[str, Any]:
        """Return the case as a configuration of ``model``."""
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
    """Return the case of a name such as ``student:resnet14-resnet8``; raises UsageError for names of another form."""
    method, _, networks = name.partition(":")
    case = METHOD_COSTS if name == COSTS else Case(method, tuple(networks.split("-")))
    if method not in METHODS or len(case.networks) != METHODS[method][1].count("<"):
        raise UsageError(f"case {name!r}: write it as {FORMS}; --list shows those of the paper")
    return case
