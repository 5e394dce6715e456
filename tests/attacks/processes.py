"""Start commands in processes forked from this one, in which the slow imports are done."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hsakd_pl.cli.main import main

PATIENCE = 600  # seconds after which a command counts as hanging


def start(arguments: list[str], folder: Path, log: Path, go: Path | None = None) -> int:
    """Start a command in ``folder`` with its output in ``log``; with ``go``, wait until that file exists."""
    return fork(lambda: main(arguments), folder, log, go)


def fork(command: Callable[[], object], folder: Path, log: Path, go: Path | None = None) -> int:
    """Call ``command`` in a process of its own and return the process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        while go is not None and not go.exists():
            time.sleep(0.001)
        command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float = PATIENCE) -> int | None:
    """Wait for a process and return its exit status, negative after a signal, or None if it is still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def interrupt(pid: int, signum: int) -> int | None:
    """Send a signal to a process that is running; return the exit status of one that has ended already."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return os.waitstatus_to_exitcode(status)
    os.kill(pid, signum)
    os.kill(pid, signal.SIGCONT)
    return None


def traces(folder: Path, printed: str) -> str:
    """Return which tracebacks and temporary files a command has left."""
    faults = " traceback" if "Traceback" in printed else ""
    if left := [path.name for path in folder.rglob("*partial*")]:
        faults += f" left {left}"
    return faults


def completed(arguments: list[str], folder: Path, log: Path) -> None:
    """Run a command to its end; raises AssertionError with its output if it fails."""
    status = wait(start(arguments, folder, log))
    assert status == 0, f"{' '.join(arguments)} ended with status {status}\n{log.read_text()}"
