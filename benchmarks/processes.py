"""The processes that are measured, and busy loops beside them; none outlives the one that started it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.trees import Tree
from benchmarks.variants import Variant, trainer_config
from hsakd_pl.errors import UsageError

PROGRAMS = {"hsakd": ["-m", "hsakd_pl"], "python": []}  # run by the interpreter of a tree
# Ends itself when its parent has gone, even if that was killed.
BUSY = """import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


def start(command: list[str], tree: Tree, folder: Path, pipe: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a folder as a group of processes of its own, which writes to ``log`` there."""
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=tree.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[] if pipe is None else [pipe],
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure(name: str, folder: Path) -> UsageError:
    """Return the error of a process that has ended early, with the last lines that it wrote."""
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return UsageError("\n".join([f"{name} has ended early:", *lines[-15:]]))


class Worker:
    """A process that trains one variant of a case, step by step, as it is asked to."""

    def __init__(self, case: Case, variant: Variant, tree: Tree, folder: Path, options: Namespace) -> None:
        self.name = f"{case.name} {variant.name}"
        self.tree = tree
        self.folder = folder
        self.connection, worker_end = Pipe()
        describe = fit_command if variant.loop == "fit" else loop_command
        folder.mkdir()
        command = [tree.python, "-m", *describe(case, variant, options, worker_end.fileno(), folder)]
        self.process = start(command, tree, folder, worker_end.fileno())
        worker_end.close()

    def open(self) -> dict[str, Any]:
        """Wait for the first steps; returns what they cost, and what the speed depends on."""
        opened = self.answer()
        package = Path(opened.pop("package"))
        if self.tree.folder not in package.parents:
            raise UsageError(f"{self.name}: imports {package}, which is not in {self.tree.folder}")
        return opened | {"commit": self.tree.commit}

    def ask(self, steps: int, profile: bool = False) -> dict[str, Any]:
        """Let the process take steps; returns what it measured."""
        with suppress(ConnectionError):  # the process has ended, which answer() reports
            self.connection.send({"steps": steps, "profile": profile})
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the process's next message; raises UsageError if it has ended."""
        try:
            message: dict[str, Any] = self.connection.recv()
        except (EOFError, ConnectionError):
            raise failure(self.name, self.folder) from None
        return message

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        end(self.process)


def loop_command(case: Case, variant: Variant, options: Namespace, pipe: int, folder: Path) -> list[str]:
    """Return the arguments that start a plain or bare loop, or a bare loop that others take turns with."""
    job = {
        "loop": variant.loop,
        "method": case.method,
        "networks": case.networks,
        "class_name": case.class_name,
        "arguments": case.arguments,
        "precision": variant.precision,
        "compiled": variant.compiled,
        "device": options.device,
        "batch_size": options.batch_size,
        "images": options.images,
        "warmup": options.warmup,
    }
    return ["benchmarks.worker", str(pipe), json.dumps(job)]


def fit_command(case: Case, variant: Variant, options: Namespace, pipe: int, folder: Path) -> list[str]:
    """Return the arguments of ``hsakd fit``: the program itself, with one more callback and less validation."""
    images = {"images": options.images, "batch_size": options.batch_size}
    measured = {"class_path": "benchmarks.loops.Measured", "init_args": {"pipe": pipe, "warmup": options.warmup}}
    trainer = {"limit_val_batches": 1, "default_root_dir": str(folder), "callbacks": [measured]}
    model = case.arguments | {"compile": variant.compiled}
    config = {
        "model": {"class_path": f"hsakd_pl.{case.class_name}", "init_args": model},
        "data": {"class_path": "benchmarks.loops.SyntheticDataModule", "init_args": images},
        "trainer": trainer_config(options.device, variant.precision) | trainer,
    }
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return ["hsakd_pl", "fit", "--config", str(file)]


def run(command: str, tree: Tree, folder: Path) -> tuple[float, int]:
    """Run a whole command in a new folder; returns its seconds, and the bytes of memory of its largest process.

    The memory is never below that of this process (100 MB), where ``getrusage`` starts.
    """
    program, *arguments = shlex.split(command)
    words = [tree.python, *PROGRAMS[program], *arguments] if program in PROGRAMS else [program, *arguments]
    tree.prepare(folder)
    began = time.perf_counter()
    process = start(words, tree, folder)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        end(process)
    if process.returncode:
        raise failure(f"{command} (status {process.returncode})", folder)
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, unit * usage.ru_maxrss


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` cores busy meanwhile."""
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
