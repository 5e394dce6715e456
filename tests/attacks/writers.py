"""Start pairs of commands together that write into the same place: one student, one table, one run, never a mixture."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from attacks.material import SHORT, TABLE, config, pictures, trained
from attacks.processes import start, traces, wait
from hsakd_pl.export import load_student
from hsakd_pl.files.weights import read_weights


def attack(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yield the faults of ``count`` pairs of each command."""
    runs = [trained(folder / name, seed + number) for number, name in enumerate("ab")]
    images = pictures(folder / "pictures")
    (folder / "mine.csv").write_text(TABLE)
    (folder / "fit.yaml").write_text(json.dumps(config()))
    bench = ["bench", str(folder / "mine.csv"), "--folder", "out/bench", *SHORT, "--task"]
    fit = ["fit", "--config", str(folder / "fit.yaml"), "--trainer.default_root_dir", "out/run"]
    fit += ["--trainer.limit_train_batches", "2"]
    test = ["test", "--config", str(folder / "a.yaml"), "--ckpt_path", str(runs[0] / "last.ckpt")]
    test += ["--trainer.default_root_dir", "out"]
    here = ["--num_workers", "0", "--folder", "out"]
    pairs: dict[str, list[list[str]]] = {
        "fit": [fit, fit],
        "test": [test, test],
        "predict": [["predict", str(run), str(images), *here] for run in runs],
        "export": [["export", str(run), "out/student", "--formats", "safetensors", "pt2"] for run in runs],
        "report": [["report", str(folder / "runs"), "--html", "out/page.html"]] * 2,
        "bench": [[*bench, "0"], [*bench, "0"]],
    }
    (folder / "runs").mkdir()
    for run in runs:
        shutil.copytree(run, folder / "runs" / run.name)
    for name, commands in pairs.items():
        yield from _race(name, commands, CHECKS[name], folder / "races", count)


def _race(
    name: str, commands: list[list[str]], check: Callable[[Path], str], folder: Path, count: int
) -> Iterator[str]:
    both = 0
    for number in range(count):
        place = folder / f"{name}{number}"
        (place / "out").mkdir(parents=True)
        logs = [place / f"log{index}" for index in range(len(commands))]
        go = place / "go"
        pids = [start(command, place, log, go) for command, log in zip(commands, logs, strict=True)]
        go.touch()
        statuses = [wait(pid) for pid in pids]
        both += statuses == [0, 0]
        printed = "\n".join(log.read_text() for log in logs)
        try:
            fault = check(place / "out")
        except (OSError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        if 0 not in statuses or not {*statuses} <= {0, 2}:
            fault += f" statuses {statuses}"
        fault += traces(place, printed)
        if fault:
            yield f"{name} {number}: {fault.strip()}\n{printed[-1500:]}"
        shutil.rmtree(place)
    print(f"{name}: of {count} pairs both commands succeeded in {both}", flush=True)


def check_run(out: Path) -> str:
    """Return what is wrong with the run of two fits, of which one was refused or came later."""
    run = out / "run"
    row = json.loads((run / "result.json").read_text())
    steps = read_weights(run / "last.ckpt")["global_step"]
    return "" if row["finished"] and steps == 2 else f"finished is {row['finished']}, {steps} steps"


def check_test(out: Path) -> str:
    """Return what is wrong with the test."""
    json.loads((out / "test_details.json").read_text())
    return "" if json.loads((out / "test.json").read_text())["images"] else "no images"


def check_predictions(out: Path) -> str:
    """Return what is wrong with the predictions: both files are of one source."""
    with (out / "predictions.csv").open(newline="") as file:
        rows = [(row["image"], row["probability"]) for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    expected = [(line["image"], f"{line['probability']:.6f}") for line in lines]
    if len(rows) != len(lines):
        return f"{len(rows)} rows and {len(lines)} lines"
    return "" if rows == expected and len({line["weights"] for line in lines}) == 1 else "a mixture"


def check_export(out: Path) -> str:
    """Return what is wrong with the export: all files are of one student."""
    import torch

    student = load_student(out / "student")
    program = torch.export.load(out / "student/model.pt2").module()
    size = student.description.image_size
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        difference = float((student(images) - program(images)).abs().max())
    return "" if difference < 1e-3 else f"pt2 and safetensors differ by {difference}"


def check_page(out: Path) -> str:
    """Return what is wrong with the page."""
    return "" if (out / "page.html").read_text().rstrip().endswith("</html>") else "half a page"


def check_bench(out: Path) -> str:
    """Return what is wrong with the bench: the task has one finished result."""
    (path,) = out.rglob("result.json")
    return "" if json.loads(path.read_text())["finished"] else "unfinished"


CHECKS: dict[str, Callable[[Path], str]] = {
    "fit": check_run,
    "test": check_test,
    "predict": check_predictions,
    "export": check_export,
    "report": check_page,
    "bench": check_bench,
}
