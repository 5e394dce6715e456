"""Change the type of each field of a run's files, one by one: every command ends well or with one line of error.

A command gets the changes of those files that it opens.
"""

import csv
import json
import random
import shutil
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

from attacks.material import pictures, trained
from attacks.processes import fork, start, wait
from hsakd_pl.cli.main import main

VALUES: tuple[Any, ...] = (None, True, -1, 1.5, 10**400, "x", "", [], {}, [[]], {"x": 1})
CHECKPOINT_VALUES: tuple[Any, ...] = (None, True, -1, 1.5, "x", [], {}, torch.zeros(0), torch.zeros(2, 2))
FILES = ("result.json", "test.json", "test_details.json", "metrics.csv", "config.yaml", "last.ckpt")
LONGEST = 3  # entries of a list or a numbered dict that are changed; the others are of the same kind


def attack(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yield the faults where each field of each file gets ``count`` values of other types."""
    run = trained(folder / "run")
    images = pictures(folder / "pictures")
    short = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    placed = ["--config", str(folder / "run.yaml"), "--trainer.default_root_dir", "run"]
    commands = {
        "report": ["report", "run", "--html", "page.html"],
        "export": ["export", "run", "out", "--formats", "safetensors"],
        "predict": ["predict", "run", str(images / "00"), "--num_workers", "0", "--folder", "out"],
        "test": ["test", *placed, "--ckpt_path", "last", "--trainer.limit_test_batches", "1"],
        "resume": ["fit", *placed, *short, "--trainer.max_epochs", "2", "--ckpt_path", "last"],
    }
    (images / "00").mkdir()
    shutil.copy(images / "00.jpg", images / "00")
    readers = {command: opened(arguments, run, folder) for command, arguments in commands.items()}
    for command, names in readers.items():
        print(f"{command} opens {', '.join(sorted(names))}", flush=True)
    draw = random.Random(seed)
    tried = 0
    for name in FILES:
        content = read(run / name)
        for place in places(content):
            values = CHECKPOINT_VALUES if name == "last.ckpt" else VALUES
            for value in draw.sample(values, min(count, len(values))):
                changed = deepcopy(content)
                put(changed, place, value)
                for command, arguments in commands.items():
                    if name not in readers[command]:
                        continue
                    work = folder / "work"
                    shutil.copytree(run, work / "run")
                    write(work / "run" / name, changed)
                    log = folder / "log"
                    log.unlink(missing_ok=True)
                    status = wait(start(arguments, work, log))
                    printed = log.read_text()
                    tried += 1
                    if status not in (0, 2) or "Traceback" in printed:
                        shown = "/".join(map(str, place))
                        yield f"{command}: {name} {shown} = {value!s:.20}: status {status}\n{printed[-1200:]}"
                    shutil.rmtree(work)
        print(f"{name}: {tried} commands so far", flush=True)


def opened(arguments: list[str], run: Path, folder: Path) -> set[str]:
    """Run a command on an unchanged copy of the run; return the names of the run's files that it opens."""
    work = folder / "work"
    listing = folder / "opened"
    log = folder / "log"
    shutil.copytree(run, work / "run")

    def record(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and Path(str(values[0])).parent.name == "run":
            lines.write(Path(str(values[0])).name + "\n")

    def listed() -> None:
        sys.addaudithook(record)
        main(arguments)

    with listing.open("w", buffering=1) as lines:
        status = wait(fork(listed, work, log))
    assert status == 0, log.read_text()
    shutil.rmtree(work)
    return {name for name in listing.read_text().split() if name in FILES}


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all fields of nested dicts and lists."""
    if isinstance(content, dict):
        items: list[tuple[Any, Any]] = list(content.items())
        first_key, first_value = next(iter(items), (None, None))
        if above and (isinstance(first_value, torch.Tensor) or isinstance(first_key, int)):
            items = items[:LONGEST]  # the tensors of a network, the states of an optimizer
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))[:LONGEST]
    else:
        return
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    """Replace the field at ``place``."""
    *above, last = place
    for key in above:
        child = content[key]
        if isinstance(child, tuple):
            child = list(child)
            content[key] = child
        content = child
    content[last] = value


def read(path: Path) -> Any:
    """Return the content of a file as nested dicts and lists."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    if path.suffix == ".csv":
        return list(csv.reader(path.open()))
    return torch.load(path, weights_only=True)


def write(path: Path, content: Any) -> None:
    """Write what :func:`read` returned."""
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(content))
    elif path.suffix == ".csv":
        rows = [row if isinstance(row, list) else [row] for row in content]
        path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    else:
        torch.save(content, path)
