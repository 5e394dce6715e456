"""Run a plain or bare loop in this process: ``python -m benchmarks.worker PIPE JOB``.

The process at the other end of the pipe asks for steps; JOB is what it measures, in JSON.
"""

import json
import sys
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any, Protocol

import torch

from benchmarks.cases import Case
from benchmarks.measuring import Measurement, drive


class Loop(Protocol):
    """A training loop that is taken step by step."""

    def step(self) -> None: ...


def plain_loop(job: dict[str, Any]) -> Loop:
    """Build the plain loop, without Lightning, whose import takes 100 MB that a plain script does not need."""
    from benchmarks.plain import PlainLoop

    case = Case(job["method"], tuple(job["networks"]))
    return PlainLoop(case, job["device"], job["precision"], job["compiled"], job["batch_size"], job["images"])


def bare_loop(job: dict[str, Any]) -> Loop:
    """Build a loop over the steps of a module, for ``added`` of a student with another loss term."""
    import hsakd_pl
    from benchmarks.loops import BareLoop, SyntheticDataModule, WithAttention

    data = SyntheticDataModule(job["images"], job["batch_size"])
    data.setup("fit")
    module_class = WithAttention if job["loop"] == "added" else attrgetter(job["class_name"])(hsakd_pl)
    module = module_class(**job["arguments"], compile=job["compiled"], num_classes=data.num_classes)
    return BareLoop(module, data, job["device"], job["precision"])


def main() -> None:
    """Build the loop of the command line, or those of all methods, and take the steps that are asked for."""
    connection, job = Connection(int(sys.argv[1])), json.loads(sys.argv[2])
    if job["loop"] == "costs":
        from benchmarks.costs import serve

        serve(connection, job)
        return
    loop = plain_loop(job) if job["loop"] == "plain" else bare_loop(job)
    drive(Measurement(torch.device(job["device"])).serve(connection, job["warmup"]), loop.step)


if __name__ == "__main__":
    main()
