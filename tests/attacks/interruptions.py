"""Interrupt predict, export, report and bench at random moments: the status is 128 + signal, nothing is half done."""

import csv
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attacks.material import PICTURES, SHORT, TABLE, pictures, trained
from attacks.processes import interrupt, start, traces, wait

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def attack(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yield the faults of ``count`` interruptions of each command."""
    run = trained(folder / "run")
    images = pictures(folder / "pictures")
    (folder / "mine.csv").write_text(TABLE)
    commands: dict[str, tuple[list[str], Callable[[Path], str]]] = {
        "predict": (["predict", str(run), str(images), "--num_workers", "0", "--folder", "out"], check_predictions),
        "export": (["export", str(run), "out"], check_export),
        "report": (["report", str(run), "--html", "out/page.html"], check_page),
        "bench": (["bench", str(folder / "mine.csv"), "--folder", "out", *SHORT], check_bench),
    }
    for name, (arguments, check) in commands.items():
        yield from _interrupt(name, arguments, check, folder / name, count, random.Random(seed))


def _interrupt(
    name: str, arguments: list[str], check: Callable[[Path], str], folder: Path, count: int, draw: random.Random
) -> Iterator[str]:
    since = time.monotonic()
    seconds = 0.0
    interrupted = 0
    for number in range(count + 1):  # the first one is not interrupted and tells how long the command takes
        place = folder / str(number)
        (place / "out").mkdir(parents=True)
        log = place / "log"
        pid = start(arguments, place, log)
        status = wait(pid, draw.uniform(0, seconds)) if number else wait(pid)
        signum = draw.choice(SIGNALS)
        expected = 0
        if number and status is None:
            status = interrupt(pid, signum)
        if status is None:
            interrupted += 1
            status = wait(pid)
            expected = 128 + signum
        seconds = seconds or time.monotonic() - since
        printed = log.read_text()
        fault = check(place / "out")
        if status != expected:
            fault += f" status {status} instead of {expected}"
        fault += traces(place, printed)
        if fault:
            yield f"{name} {number}, {signal.Signals(signum).name}: {fault.strip()}\n{printed[-1500:]}"
        shutil.rmtree(place)
    print(f"{name}: {interrupted} of {count} were interrupted before their end", flush=True)


def check_predictions(out: Path) -> str:
    """Return what is wrong with the predictions, which are complete or missing."""
    path = out / "predictions.csv"
    if not path.exists():
        return ""
    rows = list(csv.DictReader(path.open()))
    broken = [row for row in rows if "stopped" in str(row)]
    return f"{len(rows)} rows, {len(broken)} of them name the signal" if len(rows) != PICTURES or broken else ""


def check_export(out: Path) -> str:
    """Return what is wrong with the export, which is complete or missing."""
    if not out.is_dir() or not any(out.iterdir()):
        return ""
    missing = {"README.md", "model.safetensors", "model.pt2", "model.onnx"} - {path.name for path in out.iterdir()}
    return f"without {sorted(missing)}" if missing else ""


def check_page(out: Path) -> str:
    """Return what is wrong with the page, which is complete or missing."""
    path = out / "page.html"
    return "half a page" if path.exists() and not path.read_text().rstrip().endswith("</html>") else ""


def check_bench(out: Path) -> str:
    """Return what is wrong with the rows: a finished one has a checkpoint of its last step."""
    for path in out.rglob("result.json"):
        row = json.loads(path.read_text())
        if row.get("finished", True) and not path.with_name("last.ckpt").exists():
            return f"{path} is finished without a checkpoint"
    return ""
