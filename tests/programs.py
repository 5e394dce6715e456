"""Run programs in processes forked from one in which the slow imports are done, which takes 6 s less than to start one.

Python's fork server is that process: it imports and does nothing else, so that no test before changes what a program
finds. Tests of what a new interpreter does (its imports, its search path, its environment) start one.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from slurm.cluster import free_ports

from hsakd_pl.cli.main import main
from hsakd_pl.commands import seeds

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["hsakd_pl.cli.lightning_cli", "hsakd_pl.commands.bench", "hsakd_pl.commands.sweep", "hsakd_pl.methods"]
)
PATIENCE = 1800  # seconds after which a program counts as hanging


class Started:
    """Hold a program that runs in a process of its own, as ``subprocess.Popen`` does."""

    def __init__(self, program: Callable[[], object], *words: str, **environment: str) -> None:
        self.words = [program.__module__, *words]
        self.folder = tempfile.TemporaryDirectory()
        outputs = [str(Path(self.folder.name, name)) for name in ("stdout", "stderr")]
        given = (program, self.words, {**os.environ, **environment}, os.getcwd(), outputs)
        self.process = FORKED.Process(target=_called, args=given)
        self.process.start()

    def end(self, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return status and outputs; raises TimeoutExpired after ``seconds``."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        printed = [Path(self.folder.name, name).read_text() for name in ("stdout", "stderr")]
        self.folder.cleanup()
        if status is None:
            raise subprocess.TimeoutExpired(self.words, seconds, *printed)
        return subprocess.CompletedProcess(self.words, status, *printed)


def run(program: Callable[[], object], *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call a module's ``program`` as if it were a script with these arguments, in the current folder."""
    return Started(program, *words, **environment).end()


def hsakd(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ``hsakd``."""
    return run(command_line, *words, **environment)


def script() -> None:
    """Run the script that the first argument names, with the other arguments."""
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_on_two(program: Callable[[], object], *words: str) -> None:
    """Run a program as ``torchrun --nproc_per_node 2`` does; raises AssertionError if one of the processes fails."""
    job = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    job |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    started = [Started(program, *words, **job, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    for ended in [process.end() for process in started]:
        assert ended.returncode == 0, ended.stderr[-2000:]


def _called(
    program: Callable[[], object], words: list[str], environment: dict[str, str], folder: str, outputs: list[str]
) -> None:
    """Call ``program`` in this process, which has begun for it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    _called_as_script(program, words)


def _called_as_script(program: Callable[[], object], words: list[str]) -> None:
    sys.argv = words
    program()


class Run:
    """Stand in for ``subprocess.Popen`` of a run of ``hsakd``; its output goes where that of this process does."""

    def __init__(self, words: list[str]) -> None:
        assert words[:3] == [sys.executable, "-m", "hsakd_pl"]
        sys.stdout.flush()
        self.process = multiprocessing.get_context("fork").Process(target=_called_as_script, args=(main, words[2:]))
        self.process.start()

    def wait(self) -> int | None:
        """Wait for the end and return the status."""
        self.process.join()
        return self.process.exitcode


def command_line() -> None:
    """Run ``hsakd``, whose runs are processes forked from this one."""
    seeds.subprocess = SimpleNamespace(Popen=Run)
    main()
