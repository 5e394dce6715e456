"""How fast training is on this machine, beside a plain PyTorch loop that is measured in the same process."""

import argparse
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import FORMS, METHOD_COSTS, NAMED, Case, find
from benchmarks.loops import BareLoop, Phases, SyntheticDataModule, WithAttention, fit
from benchmarks.measuring import COUNTED_STEPS, Measurement, drive, environment
from benchmarks.plain import PlainLoop
from hsakd_pl.errors import UsageError

LOOPS = {"plain": "plain PyTorch", "step": "bare loop", "fit": "main.py fit", "added": "with a term more"}
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("cases", nargs="*", default=[NAMED[0].name], help=f"{FORMS}; all: those of the paper")
    options.add_argument("--list", action="store_true", help="print the paper's cases, then the methods', and stop")
    modes = options.add_mutually_exclusive_group()
    modes.add_argument("--profile", action="store_true", help="where a step's time goes, by torch.profiler")
    modes.add_argument("--added-term", action="store_true", help="what a loss term more costs a student")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--steps", type=int, default=20, help="timed steps of a block")
    options.add_argument("--warmup", type=int, default=10, help="steps before, after the first")
    options.add_argument("--blocks", type=int, default=3, help="how often the loops take turns")
    options.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="of ours; the plain loop keeps fp32")
    options.add_argument("--compile", action="store_true", help="compile=True for our modules")
    options.add_argument("--images", type=int, default=50_000, help="of noise in the form of CIFAR-100")
    options.add_argument("--out", type=Path, default=Path("results.json"), help="JSON file")
    options.add_argument("--store", action="store_true", help="keep the numbers in benchmarks/results, too")
    return options


def loops(case: Case, options: argparse.Namespace) -> dict[str, tuple[Measurement, PlainLoop | BareLoop]]:
    """Make the loops that take turns, each measured from before it is built, and warm them up."""
    if options.added_term and case.method != "student":
        raise UsageError(f"--added-term is measured on a student, not on {case.name}")
    device, data = torch.device(options.device), SyntheticDataModule(options.images, options.batch_size)
    data.setup("fit")
    made: dict[str, Any] = {"compile": options.compile, "num_classes": data.num_classes}

    def bare(each: Case) -> BareLoop:
        return BareLoop(each.module(**made), data, options)

    makers: dict[str, Callable[[], PlainLoop | BareLoop]] = {each.method: partial(bare, each) for each in case.beside}
    makers = makers or {
        "plain": lambda: PlainLoop(case, data, device),
        "step": partial(bare, case),
        "added": lambda: BareLoop(WithAttention(**case.arguments, **made), data, options),
    }
    makers.pop("plain" if options.added_term else "added", None)
    found = {}
    for name in makers:
        found[name] = (Measurement(device, options.batch_size), makers[name]())
        drive(found[name][0].opening(options.warmup), found[name][1].step)
    return found


def compare(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a case: a summary of each loop, and how many times as fast as the first the others are."""
    asked = 1 + options.warmup + COUNTED_STEPS + options.blocks * options.steps
    if asked > (full := options.images // options.batch_size):
        raise UsageError(f"{asked} steps are asked for, an epoch has {full}: lower --steps, --blocks or --batch-size")
    turns, whole = loops(case, options), Measurement(torch.device(options.device), options.batch_size)

    def phases(fitting: bool) -> Iterator[None]:
        yield from whole.opening(options.warmup) if fitting else ()
        for _ in range(options.blocks):
            for measurement, loop in turns.values():
                drive(measurement.block(options.steps), loop.step)
            yield from whole.block(options.steps) if fitting else ()

    if fitting := not (options.added_term or case.beside):
        fit(case, options, Phases(phases(fitting)))
    else:
        list(phases(fitting))
    results = {name: measurement.summary() for name, (measurement, _) in turns.items()}
    results |= {"fit": whole.summary()} if fitting else {}
    first = next(iter(results.values()))["ms_per_step"]
    return {name: {**found, "times_as_fast": first / found["ms_per_step"]} for name, found in results.items()}


def profile(case: Case, options: argparse.Namespace) -> None:
    """Print where the time of ``options.steps`` steps goes, in PyTorch's own table, for each loop."""
    for name, (_, loop) in loops(case, options).items():
        with torch.profiler.profile() as profiler:
            for _ in range(options.steps):
                loop.step()
        key = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=25)
        print(f"{case.name}: {LOOPS.get(name, name)}", table, sep="\n")


def show(case: Case, results: dict[str, Any]) -> None:
    """Print a case's numbers, a row a loop; of methods, how many times as long as the first each takes."""
    relative = f"times {next(iter(results))}" if case.beside else "times as fast"
    table = Table("loop", "ms a step", "quartiles", "images/s", "peak MiB", "syncs", "first step, s", relative)
    for name, found in results.items():
        low, _, high = found["ms_quartiles"]
        peak, syncs = found["peak_memory_bytes"], found["host_syncs_per_step"]
        numbers = [f"{found['ms_per_step']:,.1f}", f"{low:,.1f}-{high:,.1f}", f"{found['images_per_second']:,.1f}"]
        numbers += ["-" if peak is None else f"{peak / 2**20:,.0f}", "-" if syncs is None else f"{syncs:.1f}"]
        times = found["times_as_fast"] ** (-1 if case.beside else 1)
        table.add_row(LOOPS.get(name, name), *numbers, f"{found['first_step_seconds']:.1f}", f"{times:.2f}")
    Console(width=120).print(case.name, table, sep="\n")


def store(results: dict[str, Any]) -> Path:
    """Keep the numbers, without those of single steps, in the device's file; a case replaces what it had there."""
    path = RESULTS / f"{re.sub('[^a-z0-9]+', '-', results['environment']['device'].lower())}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for case, found in results["cases"].items():
        numbers = {loop: {key: of[key] for key in of if key != "step_ms"} for loop, of in found.items()}
        kept[f"{case} {results['options']}"] = {**numbers, "environment": results["environment"]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    return path


def measure(options: argparse.Namespace) -> None:
    """Do what the command line asks for, one case after the other."""
    if min(options.batch_size, options.steps, options.blocks) < 1 or options.warmup < 0:
        raise UsageError("--batch-size, --steps and --blocks must be at least 1, --warmup at least 0")
    told = (
        f"batch {options.batch_size}",
        options.precision,
        options.compile and "compiled",
        options.added_term and "a term",
    )
    about = {"options": ", ".join(filter(None, told)), "environment": environment(torch.device(options.device))}
    results: dict[str, Any] = {**about, "cases": {}}
    for case in NAMED if options.cases == ["all"] else tuple(find(name) for name in options.cases):
        if options.profile:
            profile(case, options)
            continue
        show(case, found := compare(case, options))
        results["cases"][case.name] = found
        options.out.write_text(json.dumps(results, indent=1))  # after every case: a long run may be cut short
        print(f"{options.out}: the numbers in full", *([f"{store(results)}: kept"] if options.store else []), sep="\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with status 2."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in (*NAMED, METHOD_COSTS, *METHOD_COSTS.beside)))
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    try:
        measure(options)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
