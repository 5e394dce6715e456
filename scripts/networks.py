"""Try networks of timm, of torchvision and of own code with everything that the package does; write docs/networks.md.

python scripts/networks.py sweep [--results FILE] [--kinds KIND ...] [--names NAME ...] [--sides SIDE ...]
    [--checks CHECK ...] [--minutes N]
python scripts/networks.py page [--results FILE]

``sweep`` appends a line of JSON for each network, side and check, and skips those that have one there or in
docs/networks.json; each network is tried in a process of its own. ``page`` adds the outcomes to docs/networks.json and
writes the page from it.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path("runs/networks.jsonl")
LARGEST = 60_000_000  # parameters of a network that is tried
SECONDS = 240  # of the CPU that a check may take
ONCE = ("create", "count", "export")  # checks at the first side that the network accepts
KINDS = ("own", "torchvision", "timm")
TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_1_6gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_y_1_6gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "densenet169",
    "vgg11",
    "vgg11_bn",
    "vit_b_16",
    "wide_resnet50_2",
)


class OutOfTimeError(BaseException):
    """A check takes too long; no code that catches any exception takes it for one of its own."""


class Result(NamedTuple):
    """Hold one outcome: ``works``, ``refused``, ``traceback``, ``difference`` or ``not run``, and a reason."""

    kind: str
    name: str
    side: int
    check: str
    outcome: str
    reason: str = ""


def read(path: Path) -> list[Result]:
    """Return the results of a file; a line that is not whole is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines if line.startswith("{") and line.endswith("}")]


def write(path: Path, result: Result) -> None:
    """Append a result, on a line of its own also after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(result._asdict()) + "\n")


def smallest_of_timm() -> list[str]:
    """Return the smallest model of each of timm's families, as stored for this version: they take minutes to find."""
    import timm
    import torch
    from network_page import read_stored

    stored = read_stored()
    if stored["versions"]["timm"] == timm.__version__:
        return stored["families"]
    smallest = []
    for family in timm.list_modules():
        sizes = []
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(name)
            sizes.append((sum(parameter.numel() for parameter in model.parameters()), name))
        smallest.append(min(sizes)[1])
    return smallest


def stored_results() -> list[Result]:
    """Return the outcomes of docs/networks.json."""
    from network_page import read_stored

    results = []
    for label, facts in read_stored()["networks"].items():
        kind, _, name = label.partition(":")
        for check, sides in facts["checks"].items():
            reason = facts["reasons"].get(check, "")
            results += [Result(kind, name, int(side), check, outcome, reason) for side, outcome in sides.items()]
    return results


def attempt(subject: Any, side: int, check: str) -> Result:
    """Run a check in this process, and return its outcome."""
    from network_checks import CHECKS, DifferenceError

    from hsakd_pl.errors import UsageError

    outcome, reason = "works", ""
    try:
        CHECKS[check](subject, side)
    except UsageError as error:
        outcome, reason = "refused", str(error)
        if "\n" in reason:
            outcome = "traceback"
    except DifferenceError as error:
        outcome, reason = "difference", str(error)
    except OutOfTimeError:
        outcome, reason = "not run", f"more than {SECONDS} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())
        outcome, reason = (
            "traceback",
            f"{type(error).__name__}: {words:.200} ({Path(place.filename).name}:{place.lineno})",
        )
    return Result(subject.kind, subject.name, side, check, outcome, reason[:400])


def late(*_: Any) -> None:
    raise OutOfTimeError


def in_process(subject: Any, side: int, checks: Iterable[str], path: Path) -> None:
    """Try checks in a process of their own, which appends each result; a process that dies leaves one too."""
    waiting = list(checks)
    while waiting:
        before = len(read(path))
        child = os.fork()
        if child == 0:
            _work(subject, side, waiting, path)
        status = os.waitpid(child, 0)[1]
        finished = len(read(path)) - before
        if status != 0 and finished < len(waiting):
            reason = f"the process ended with status {os.waitstatus_to_exitcode(status)}"
            write(path, Result(subject.kind, subject.name, side, waiting[finished], "traceback", reason))
            finished += 1
        waiting = waiting[finished:]


def _work(subject: Any, side: int, checks: list[str], path: Path) -> None:
    """Run checks in a child, which ends here."""
    status = 1
    try:
        signal.signal(signal.SIGPROF, late)
        for check in checks:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            result = attempt(subject, side, check)
            signal.setitimer(signal.ITIMER_PROF, 0)
            write(path, result)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def subjects(kinds: Iterable[str], names: Iterable[str], families: Iterable[str]) -> Iterator[Any]:
    """Yield the networks to try; ``families`` are the models that stand for timm's."""
    from network_checks import OWN, Subject

    wanted = {*names}
    for kind in kinds:
        members = {"own": OWN, "torchvision": TORCHVISION, "timm": families}[kind]
        yield from (Subject(kind, name) for name in members if not wanted or name in wanted)


def is_too_large(subject: Any) -> bool:
    """Check the number of parameters, without weights: on the meta device, or as torchvision publishes it."""
    import timm
    import torch
    from torchvision.models import get_model_weights

    if subject.kind == "own":
        return False
    if subject.kind == "torchvision":
        return next(iter(get_model_weights(subject.name))).meta["num_params"] > LARGEST
    with torch.device("meta"):
        model = timm.create_model(subject.name)
    return sum(parameter.numel() for parameter in model.parameters()) > LARGEST


def planned(done: dict[tuple[str, str, int, str], Result], subject: Any, side: int, checks: list[str]) -> list[str]:
    """Return the checks that a network still needs at a side."""
    key = (subject.kind, subject.name)
    if any(
        result.outcome == "not run" and result.check == "create" for place, result in done.items() if place[:2] == key
    ):
        return []
    missing = []
    for check in checks:
        places = [place for place in done if place[:2] == key and place[3] == check]
        settled = any(done[place].outcome != "refused" for place in places) if check in ONCE else False
        if (*key, side, check) not in done and not settled:
            missing.append(check)
    return missing


def sweep(options: argparse.Namespace) -> None:
    """Run what is missing, sides after each other."""
    import torch

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    path, families, stored = options.results, smallest_of_timm(), stored_results()
    for side in options.sides:
        for subject in subjects(options.kinds, options.names, families):
            if time.monotonic() > end:
                return
            done = {result[:4]: result for result in (*stored, *read(path))}
            checks = planned(done, subject, side, options.checks)
            if not checks:
                continue
            if is_too_large(subject):
                reason = f"more than {LARGEST:,} parameters"
                write(path, Result(subject.kind, subject.name, side, "create", "not run", reason))
                continue
            start = time.monotonic()
            in_process(subject, side, checks, path)
            print(f"{subject.kind} {subject.name} {side} {time.monotonic() - start:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sweep", "page"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--names", nargs="+", default=())
    parser.add_argument("--sides", nargs="+", type=int, default=(32, 64, 224))
    parser.add_argument("--minutes", type=float, default=1e6)
    checks = ["create", "logits", "student", "teacher", "feature", "hsakd", "count", "export"]
    parser.add_argument("--checks", nargs="+", default=checks, choices=checks)
    options = parser.parse_args()
    if options.command == "sweep":
        sweep(options)
    else:
        from network_page import write_page

        families = smallest_of_timm()
        planned = {kind: len([*subjects([kind], (), families)]) for kind in KINDS}
        write_page([*stored_results(), *read(options.results)], planned, families)


if __name__ == "__main__":
    main()
