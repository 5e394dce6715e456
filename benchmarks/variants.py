"""The variants of a training loop that can be named and compared, such as ``fit-bf16@5c4e141``."""

import re
from typing import Any, NamedTuple

from hsakd_pl.errors import UsageError

LOOPS = {
    "plain": "plain PyTorch loop, as in the published script",
    "step": "training steps of our module, without a trainer",
    "added": "the same of a student with another loss term",
    "fit": "hsakd fit",
}
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
FORM = "LOOP[-fp32|-bf16][-compiled][@COMMIT]"


class Variant(NamedTuple):
    """A loop, its precision, whether it is compiled, and the commit of the package: None for this checkout."""

    loop: str
    precision: str = "fp32"
    compiled: bool = False
    commit: str | None = None

    @property
    def name(self) -> str:
        precision = "" if self.precision == "fp32" else f"-{self.precision}"
        compiled = "-compiled" if self.compiled else ""
        commit = f"@{self.commit}" if self.commit else ""
        return self.loop + precision + compiled + commit


def parse(name: str, precision: str) -> Variant:
    """Return the variant of a name, in ``precision`` if it names none; raises UsageError for names of another form."""
    match = re.fullmatch(rf"({'|'.join(LOOPS)})(?:-(fp32|bf16))?(-compiled)?(?:@(.+))?", name)
    if not match:
        raise UsageError(f"loop {name!r}: write it as {FORM}, with LOOP one of {', '.join(LOOPS)}")
    loop, named_precision, compiled, commit = match.groups()
    return Variant(loop, named_precision or precision, bool(compiled), commit)


def trainer_config(device: str, precision: str) -> dict[str, Any]:
    """Return the trainer's arguments that differ from the defaults of ``hsakd fit``."""
    config: dict[str, Any] = {"accelerator": "gpu" if device == "cuda" else device, "devices": 1}
    if precision != "fp32":
        config["precision"] = PRECISIONS[precision]
    return config
