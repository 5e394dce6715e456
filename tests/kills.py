"""Kill runs at random moments and during writes, resume them, and compare the results with an uninterrupted run.

    python tests/kills.py --kills 200 --aimed 40 --seed 0

Each start is forked from this process, in which the slow imports are done. A chain starts and kills a run until it is
finished; every second chain saves after each step instead of each epoch, and temporary files are on another file system
if there is one. Prints one line per chain; the exit status is 1 if anything differed.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked

import torch
from attacks.processes import PATIENCE, wait

import hsakd_pl.files.text
from hsakd_pl.cli.main import main

CONFIG = {
    "model": {"class_path": "hsakd_pl.TeacherModule", "init_args": {"network": "resnet8", "milestones": [1]}},
    "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": {"num_workers": 0, "batch_size": 16}},
    "trainer": {
        "max_epochs": 3,
        "limit_train_batches": 6,
        "limit_val_batches": 4,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    },
}
MOMENTS = ("half written", "before it is on the disk", "before it is renamed", "after it was renamed")
OTHER_FILE_SYSTEM = Path("/dev/shm")
MOST = 20  # kills of one run, which otherwise might never finish on a busy machine
VARYING = ("seconds", "device_hours", "images_per_second", "resumes", "config")


def suicide() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(file: Any, content: Any) -> None:
    """Write half of ``content`` to ``file`` and kill this process."""
    type(file).write(file, content[: len(content) // 2])
    file.flush()
    suicide()


def aim(moment: str, count: int) -> None:
    """Kill this process at a moment of the ``count``-th file that it writes."""
    left = [count]

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        file = open(path, mode, **options)  # noqa: SIM115
        if "x" in mode:
            left[0] -= 1
            if moment == MOMENTS[0] and left[0] == 0:
                file.write = partial(write_half, file)
        return file

    def dying(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if left[0] == 0 and not after:
                suicide()
            result = function(*arguments)
            if left[0] == 0:
                suicide()
            return result

        return call

    hsakd_pl.files.text.open = opened  # type: ignore[attr-defined]
    if moment in MOMENTS[1:3]:
        os.fsync = dying(os.fsync, after=moment == MOMENTS[2])
    if moment == MOMENTS[3]:
        os.replace = os.rename = dying(os.replace, after=True)
        Path.replace = lambda self, target: os.replace(self, target)  # type: ignore[assignment, method-assign, return-value]


def start(folder: Path, every_step: bool, aimed: tuple[str, int] | None = None) -> int:
    """Start or resume a run in its own process and return the process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        log = (folder / "log").open("a")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if OTHER_FILE_SYSTEM.is_dir():
            tempfile.tempdir = os.environ["TMPDIR"] = str(OTHER_FILE_SYSTEM)
        if aimed:
            aim(*aimed)
        resume = ["--ckpt_path", "last"] if (folder / "run/last.ckpt").exists() else []
        minutes = str(1e-9 if every_step else 1e9)
        options = ["--save_every_minutes", minutes, "--trainer.default_root_dir", str(folder / "run"), *resume]
        main(["fit", "--config", str(folder / "config.yaml"), *options])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(status)


def loaded(path: Path) -> Any:
    """Return the content of a checkpoint."""
    return torch.load(path, weights_only=True)


def outcome(run: Path) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on its interruptions."""
    last = loaded(run / "last.ckpt")
    best = loaded(run / "best.ckpt")
    row = json.loads((run / "result.json").read_text())
    scores = [state["best_model_score"] for key, state in last["callbacks"].items() if key.startswith("BestCheckpoint")]
    kept = {name: value for name, value in row.items() if name not in VARYING}
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {"row": kept, "scores": scores, "best": best["state_dict"]} | {part: last[part] for part in parts}


def differing(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places where two outcomes differ by at least one bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differing(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [place for k in range(len(one)) for place in differing(one[k], other[k], f"{where}/{k}")]
    return [] if one == other else [f"{where}: {one} and {other}"]


def torn(run: Path) -> list[str]:
    """Return the files of a killed run that cannot be read."""
    broken = []
    for path in (*run.glob("*.ckpt"), *run.glob("result.json")):
        try:
            json.loads(path.read_text()) if path.suffix == ".json" else loaded(path)
        except Exception as error:  # noqa: PERF203
            broken.append(f"{path.name}: {error}")
    return broken


def chain(
    folder: Path, every_step: bool, draw: random.Random, seconds: float, aimed: int
) -> tuple[int, int, list[str]]:
    """Kill a run until it finishes; return the number of kills, the number of aimed kills, and the errors."""
    kills = aims = 0
    wrong: list[str] = []
    while True:
        aim_now = (draw.choice(MOMENTS), draw.randint(1, 12 if every_step else 3)) if aimed > aims else None
        pid = start(folder, every_step, aim_now)
        spared = aim_now is not None or kills >= MOST
        status = wait(pid, PATIENCE if spared else draw.uniform(0, seconds))
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = wait(pid, PATIENCE)
        wrong += torn(folder / "run")
        if status is None or status >= 0:
            return kills, aims, wrong + ([f"ended with status {status}"] if status else [])
        kills += 1
        aims += aim_now is not None


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Path]:
    """Make a folder with the configuration, and remove it at the end."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    yield folder
    shutil.rmtree(folder)


def run_all(kills: int, aimed: int, seed: int) -> bool:
    """Run chains until there were enough kills, and return whether all results were equal."""
    draw = random.Random(seed)
    begun = time.monotonic()
    gc.freeze()  # otherwise a collection in a child copies all imported objects
    with tempfile.TemporaryDirectory() as name, prepared(Path(name, "whole")) as whole:
        assert wait(start(whole, every_step=False), PATIENCE) == 0, (whole / "log").read_text()
        since = time.monotonic()
        expected = outcome(whole / "run")
        with prepared(Path(name, "again")) as again:  # saving after each step takes longest
            assert wait(start(again, every_step=True), PATIENCE) == 0, (again / "log").read_text()
            seconds = time.monotonic() - since
            assert not differing(outcome(again / "run"), expected)
        done = aims = number = 0
        faults: list[str] = []
        while done < kills or aims < aimed:
            number += 1
            every_step = number % 2 == 0
            with prepared(Path(name, f"chain{number}")) as folder:
                killed, hit, wrong = chain(folder, every_step, draw, seconds, min(aimed - aims, 4))
                wrong = wrong or differing(outcome(folder / "run"), expected)
                done += killed
                aims += hit
                saving = "step" if every_step else "epoch"
                print(
                    f"chain {number}, saving each {saving}: {killed} kills, {hit} aimed, {wrong or 'equal'}", flush=True
                )
                if wrong:
                    print((folder / "log").read_text()[-2000:])
                faults += wrong
        print(f"{done} kills, {aims} aimed at a file, {len(faults)} faults, {time.monotonic() - begun:.0f} s")
        return not faults


def program() -> None:
    """Run as many kills as the arguments say; the exit status is 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--aimed", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(not run_all(options.kills, options.aimed, options.seed))


if __name__ == "__main__":
    program()
