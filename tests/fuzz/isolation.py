"""Read mutants in forked children, so that a crash, a hang or excessive memory is reported and does not end the run."""

import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuzz.mutations import Mutant, write_files
from fuzz.readers import READERS, MalformedError, Reader
from hsakd_pl.errors import UsageError

MEBIBYTE = 1 << 20
MOST_MEMORY = 2048 * MEBIBYTE  # above the memory before
MOST_ADDRESSES = 8192 * MEBIBYTE  # protects the machine
BATCH = 100
PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
# An import of it leaves a trace
PAYLOAD = "import os\nos.mkdir('executed')\ndef boom(*_): os.environ['FUZZ_EXECUTED'] = '1'\n"


@dataclass(frozen=True)
class Outcome:
    """Report the result of a mutant: ``unchanged`` (accepted as if undamaged), ``accepted``, ``refused`` or ``fault``.

    ``nameless``: the refusal does not name the file.
    """

    index: int
    verdict: str
    why: str
    nameless: bool = False
    mebibytes: int = 0
    seconds: float = 0.0


def examine(name: str, inputs: range, seed: int, seconds: float, scratch: Path) -> Iterator[Outcome]:
    """Read the mutants ``inputs`` of a reader, each within ``seconds``; ``scratch`` is an empty folder."""
    (scratch / "fuzz_payload.py").write_text(PAYLOAD)
    rest = list(inputs)
    while rest:
        for outcome in _batch(name, rest[:BATCH], seed, seconds, scratch):
            yield outcome
            rest.remove(outcome.index)


def _batch(name: str, indices: list[int], seed: int, seconds: float, scratch: Path) -> Iterator[Outcome]:
    """Return the outcomes of as many of ``indices`` as one child survives, at least one."""
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of this process do not exist in the child
        child = os.fork()
    if child == 0:
        try:
            os.close(receiving)
            _child(name, indices, seed, scratch, sending)
        except BaseException:  # an error in the valid files or in mutating: the harness's own
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(sending)
    try:
        buffered = b""
        for index in indices:
            while b"\n" not in buffered:  # a dot arrives when the mutant is made, and the clock restarts
                ready, _, _ = select.select([receiving], [], [], seconds)
                if not ready:
                    os.kill(child, signal.SIGUSR1)  # faulthandler prints the stack
                    time.sleep(0.5)
                    yield Outcome(index, "fault", f"hang over {seconds:g} s: {_said(scratch)}")
                    return
                received = os.read(receiving, 65536)
                if not received:
                    yield Outcome(index, "fault", f"crash: {_said(scratch)}")
                    return
                buffered += received
            line, _, buffered = buffered.partition(b"\n")
            yield Outcome(**json.loads(line.lstrip(b".")))
    finally:
        os.close(receiving)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _said(scratch: Path) -> str:
    """Return the innermost frames that faulthandler wrote last."""
    log = (scratch / "log").read_text(errors="replace")
    return (
        (re.findall(r"Fatal Python error.*|^\w*Error: .*", log, re.MULTILINE) or [""])[0]
        + " "
        + " < ".join(re.findall(r'File "(.+)', log)[:6])
    )


def _child(name: str, indices: list[int], seed: int, scratch: Path, sending: int) -> None:
    """Read the mutants one by one and send one line about each."""
    log = os.open(scratch / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    # pytest replaces these
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log, all_threads=False)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.chdir(scratch)
    sys.path.append(str(scratch))
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in PROGRAMS else None)
    limit = _memory("VmSize") + MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = READERS[name]
    right = {digest for digest in (_right(reader, seed_files) for seed_files in reader.seeds()) if digest}
    for index in indices:
        os.ftruncate(log, 0)
        os.lseek(log, 0, os.SEEK_SET)
        mutant = reader.mutant(seed, index, name)
        os.write(sending, b".")
        outcome = _outcome(reader, index, mutant, right, started)
        os.write(sending, json.dumps(outcome).encode() + b"\n")


def _right(reader: Reader, files: Any) -> str | None:
    """Return the digest of a valid file, if the reader accepts its kind."""
    try:
        return _read(reader, files)
    except (UsageError, SystemExit):
        return None


def _read(reader: Reader, files: Any) -> str:
    folder = Path("input")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_files(folder, files)
    return reader.read(folder.absolute())


def _outcome(reader: Reader, index: int, mutant: Mutant, right: set[str], started: list[str]) -> dict[str, Any]:
    """Read one mutant and return the fields of an :class:`Outcome`."""
    started.clear()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    memory_before = _memory("VmHWM")
    time_before = time.monotonic()
    verdict, why = _verdict(reader, mutant, right)
    seconds = time.monotonic() - time_before
    peak = _memory("VmHWM") - memory_before
    nameless = verdict == "refused" and not any(name in why for name in mutant.files)
    fault = _fault_behind(verdict, why, peak, started)
    if fault is not None:
        verdict, why = "fault", fault
        with suppress(FileNotFoundError):
            Path("executed").rename(f"executed_{index}")
    return {
        "index": index,
        "verdict": verdict,
        "why": why.encode("utf-8", "replace").decode(),
        "nameless": nameless,
        "mebibytes": peak // MEBIBYTE,
        "seconds": seconds,
    }


def _verdict(reader: Reader, mutant: Mutant, right: set[str]) -> tuple[str, str]:
    """Read one mutant and return the verdict on what happened, with its reason."""
    try:
        result = _read(reader, mutant.files)
    except UsageError as error:
        return "refused", str(error)
    except SystemExit as end:
        sys.stderr.flush()
        printed = Path("log").read_text(errors="replace")
        if end.code == 2 and "Traceback" not in printed:
            return "refused", printed
        return "fault", f"status {end.code}: {printed}"
    except MalformedError as error:
        return "fault", str(error)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "hsakd_pl" in frame.filename), frames[-1])
        place = f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
        return "fault", f"{type(error).__name__}: {str(error)[:200]} at {place}"
    if mutant.refuse:
        return "fault", "accepted what must be refused"
    if result in right:
        return "unchanged", ""
    if _checked(reader, mutant) and not mutant.forged:
        return "fault", "accepted with other content, against its check sums"
    return "accepted", ""


def _fault_behind(verdict: str, why: str, peak: int, started: list[str]) -> str | None:
    """Return the fault of a reader whose verdict may look harmless: code that ran, memory, an endless message."""
    if started or Path("executed").exists() or os.environ.pop("FUZZ_EXECUTED", None):
        return f"ran code or opened a connection ({' '.join(started)}): {why[:100]}"
    if peak > MOST_MEMORY:
        return f"{peak // MEBIBYTE} MiB of memory ({verdict}: {why[:100]})"
    if verdict == "refused" and len(why) > 2000:
        return f"a message of {len(why)} characters: {why[:100]}"
    return None


def _checked(reader: Reader, mutant: Mutant) -> bool:
    """Return whether the format has checksums."""
    contents = (content for content in mutant.files.values() if isinstance(content, bytes))
    return reader.checked is not None and any(content.startswith(reader.checked) for content in contents)


def _memory(field: str) -> int:
    """Return bytes from the kernel's account of this process."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def summary(name: str, outcomes: list[Outcome]) -> str:
    """Return one line about a reader."""
    counted = Counter(outcome.verdict for outcome in outcomes)
    refused = f"{counted['refused']} refused ({sum(o.nameless for o in outcomes)} without the file's name)"
    most = f"at most {max(o.seconds for o in outcomes):.1f} s and {max(o.mebibytes for o in outcomes)} MiB"
    accepted = f"{counted['unchanged']} accepted unchanged, {counted['accepted']} accepted"
    return f"{name}: {len(outcomes)} inputs, {accepted}, {refused}, {counted['fault']} faults; {most}"
