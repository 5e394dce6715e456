"""The cases that are measured: the pairs and networks of the paper's tables, and any others of the registry."""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

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


@cache
def comparison_methods() -> dict[str, tuple[str, str]]:
    """Return class and form of the case's name of each comparison method, plain KD first."""
    names = [name for name in sorted(import_module("hsakd_pl.methods").__all__) if name.endswith("Module")]
    methods = {}
    for name in ["KDModule", *(name for name in names if name not in ("KDModule", "DistilledModule"))]:
        method = name.removesuffix("Module").lower()
        networks = "<net>" if method in PARTS else "<teacher>-<student>"
        methods[method] = (f"methods.{name}", f"{method}:{networks}")
    return methods


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
        if self.method in METHODS:
            return []
        if self.method == COSTS:
            return [Case(method, self.networks[PARTS.get(method, slice(2))]) for method in comparison_methods()]
        kd = [Case("kd", self.networks)] if len(self.networks) == 2 else []
        return list(dict.fromkeys([*kd, self]))

    @property
    def class_name(self) -> str:
        """Name of the module's class in ``hsakd_pl``."""
        return (METHODS.get(self.method) or comparison_methods()[self.method])[0]

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


NAMED = (
    *(Case("student", pair) for pair in PAIRS),
    *(Case("teacher", (network,)) for network in TEACHERS),
    *(Case("mutual", (network,)) for network in PEERS),
    Case("probe", ("mobilenetv2",)),
)
METHOD_COSTS = Case(COSTS, ("wrn_40_2", "wrn_16_2"))
TABLE = (
    Case("student", ("wrn_40_2", "wrn_16_2")),
    Case("student", ("resnet32x4", "resnet8x4")),
    Case("student", ("vgg13", "vgg8")),
    Case("student", ("resnet50", "mobilenetv2")),
    Case("student", ("resnet32x4", "shufflenetv2")),
    Case("teacher", ("wrn_40_2",)),
    Case("mutual", ("wrn_40_2",)),
)


def find(name: str) -> Case:
    """Return the case of a name such as ``student:resnet14-resnet8``; raises UsageError for names of another form."""
    method, _, networks = name.partition(":")
    case = METHOD_COSTS if name == COSTS else Case(method, tuple(networks.split("-")))
    if method in METHODS:
        form = METHODS[method][1]
    elif method == COSTS:
        form = "<teacher>-<student>"
    else:
        form = comparison_methods().get(method, ("", ""))[1]
    if not form or len(case.networks) != form.count("<"):
        raise UsageError(f"case {name!r}: write it as {FORMS}; --list shows those of the paper")
    return case
