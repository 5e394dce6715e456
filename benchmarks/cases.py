"""What is measured: the methods and networks of the paper's tables, and any other of the registry, by name."""

from typing import Any, NamedTuple

import hsakd_pl
from hsakd_pl import HSAKDModule
from hsakd_pl.errors import UsageError
from hsakd_pl.recipes import PAIRS, PEERS, TEACHERS

# method -> class of the library, and the form of its name
METHODS = {
    "student": ("StudentModule", "student:<teacher>-<student>"),
    "teacher": ("TeacherModule", "teacher:<net>"),
    "mutual": ("MutualModule", "mutual:<net>"),
    "probe": ("LinearProbeModule", "probe:<net>"),
}
LR = 0.01  # of all cases: it does not change the speed, but keeps the loss finite
FORMS = ", ".join(form for _, form in METHODS.values())


class Case(NamedTuple):
    """A method and its networks by name: a student after its teacher; for mutual one, which learns with its twin."""

    method: str
    networks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}:{'-'.join(self.networks)}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the module takes, by the names of its options."""
        networks = {"networks": [*self.networks * 2]} if self.method == "mutual" else {"network": self.networks[-1]}
        frozen = {"student": {"teacher": self.networks[0], "teacher_weights": "random"}, "probe": {"weights": "random"}}
        return {**networks, "lr": LR, **frozen.get(self.method, {})}

    def config(self, **options: Any) -> dict[str, Any]:
        """Give the case as a configuration of the command line has it under ``model``."""
        return {"class_path": f"hsakd_pl.{METHODS[self.method][0]}", "init_args": {**self.arguments, **options}}

    def module(self, **options: Any) -> HSAKDModule:
        """Build the case as a module, with fresh weights."""
        return getattr(hsakd_pl, METHODS[self.method][0])(**self.arguments, **options)


NAMED = (
    *(Case("student", pair) for pair in PAIRS),
    *(Case("teacher", (network,)) for network in TEACHERS),
    *(Case("mutual", (network,)) for network in PEERS),
    Case("probe", ("mobilenetv2",)),
)


def find(name: str) -> Case:
    """Find the case of a name such as ``student:resnet14-resnet8``; UsageError where it has another form."""
    method, _, networks = name.partition(":")
    case = Case(method, tuple(networks.split("-")))
    if method not in METHODS or len(case.networks) != (2 if method == "student" else 1):
        raise UsageError(f"case {name!r}: write it as {FORMS}; --list shows those of the paper")
    return case
