"""Measure a step of each comparison method relative to one of plain KD, all in one process.

A method is built, takes turns with KD, and is dropped before the next one, so that both of a ratio see the same machine
and only two networks with their teachers are in memory.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any

import numpy as np
import torch

import hsakd_pl
from benchmarks.entries import COST_FILE, Entry
from benchmarks.loops import BareLoop, SyntheticDataModule
from benchmarks.measuring import Measurement, drive, environment, receive


def serve(connection: Connection, job: dict[str, Any]) -> None:
    """Measure the methods that come in one after the other, in turns with that of the job, until none come."""
    data = SyntheticDataModule(job["images"], job["batch_size"])
    data.setup("fit")
    np.save(COST_FILE, 1 - np.eye(data.num_classes, dtype=np.float32))
    measurement = Measurement(torch.device(job["device"]))

    def build(entry: Entry) -> BareLoop:
        torch.manual_seed(0)
        module = attrgetter(entry.class_name)(hsakd_pl)(**entry.arguments, num_classes=data.num_classes)
        loop = BareLoop(module, data, job["device"], job["precision"])
        timed(measurement, loop, 1 + job["warmup"])
        return loop

    reference = build(Entry("KD", job["class_name"], job["arguments"]))
    connection.send(environment())
    while order := receive(connection):
        loop = build(Entry(*order["entry"]))
        rows = counted_rows(loop)
        reference_ms: list[list[float]] = []
        step_ms: list[list[float]] = []
        for index in range(order["rounds"]):
            turns = [(reference, reference_ms), (loop, step_ms)]
            for measured, blocks in turns if index % 2 == 0 else reversed(turns):
                blocks.append(timed(measurement, measured, order["steps"]))
        connection.send({"reference_ms": reference_ms, "step_ms": step_ms} | rows)
        del loop
        gc.collect()


def timed(measurement: Measurement, loop: BareLoop, steps: int) -> list[float]:
    """Take steps; returns their milliseconds."""
    step_ms: list[float] = []

    def block() -> Iterator[None]:
        step_ms.extend((yield from measurement.block(steps)))

    drive(block(), loop.step)
    return step_ms


def counted_rows(loop: BareLoop) -> dict[str, int]:
    """Take a step; returns how many images pass through the trained networks, in how many passes, and the teacher."""
    rows = {"student": 0, "student_passes": 0, "teacher": 0, "teacher_passes": 0}
    with ExitStack() as stack:
        for network in loop.module.networks:
            stack.enter_context(counting(network, "outputs", network.outputs, rows, "student"))
        for teacher in loop.module.teachers:
            function = teacher.stand_in or teacher.network.outputs
            stack.enter_context(counting(teacher, "stand_in", function, rows, "teacher"))
        loop.step()
    return rows


@contextmanager
def counting(
    holder: Any, name: str, function: Callable[[torch.Tensor], Any], rows: dict[str, int], of: str
) -> Iterator[None]:
    """Let an attribute be a function that counts the images and the calls, in ``rows``, meanwhile."""
    is_own = name in vars(holder)
    before = getattr(holder, name)

    def counted(images: torch.Tensor) -> Any:
        rows[of] += len(images)
        rows[f"{of}_passes"] += 1
        return function(images)

    setattr(holder, name, counted)
    yield
    if is_own:
        setattr(holder, name, before)
    else:
        delattr(holder, name)
