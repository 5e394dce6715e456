"""Measure the speed of training on this machine, compared with a plain PyTorch loop in the same process."""

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

LOOPS = {"plain": "plain PyTorch", "step": "bare loop", "fit": "main.py fit", "added": "with another term"}
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("cases", nargs="*", default=[NAMED[0].name], help=f"{FORMS}; all: those of the paper")
    options.add_argument("--list", action="store_true", help="print the paper's cases, then the methods', and stop")
    modes = options.add_mutually_exclusive_group()
    modes.add_argument("--profile", action="store_true", help="show a step's time by operation (torch.profiler)")
    modes.add_argument("--added-term", action="store_true", help="measure the cost of another loss term of a student")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--steps", type=int, default=20, help="timed steps per block")
    options.add_argument("--warmup", type=int, default=10, help="untimed steps, after the first")
    options.add_argument("--blocks", type=int, default=3, help="number of turns of each loop")
    options.add_argument(
        "--precision", choices=("32-true", "bf16-mixed"), help="of our loops; the plain one keeps fp32"
    )
    options.add_argument("--compile", action="store_true", help="compile=True for our modules")
    options.add_argument("--images", type=int, default=50_000, help="number of images of noise (32 x 32)")
    options.add_argument("--out", type=Path, default=Path("results.json"), help="JSON file")
    options.add_argument("--store", action="store_true", help="also keep the numbers in benchmarks/results")
    return options


def loops(case: Case, options: argparse.Namespace) -> dict[str, tuple[Measurement, PlainLoop | BareLoop]]:
    """Build the loops that take turns, each with a measurement that begins before it is built, and warm them up."""
    if options.added_term and case.method != "student":
        raise UsageError(f"--added-term is measured on a student, not on {case.name}")
    device = torch.device(options.device)
    data = SyntheticDataModule(options.images, options.batch_size)
    data.setup("fit")
    module_options: dict[str, Any] = {"compile": options.compile, "num_classes": data.num_classes}

    def bare_loop(measured: Case) -> BareLoop:
        return BareLoop(measured.module(**module_options), data, options)

    builders: dict[str, Callable[[], PlainLoop | BareLoop]]
    if case.compared:
        builders = {compared.method: partial(bare_loop, compared) for compared in case.compared}
    elif options.added_term:
        builders = {
            "step": partial(bare_loop, case),
            "added": lambda: BareLoop(WithAttention(**case.arguments, **module_options), data, options),
        }
    else:
        builders = {"plain": lambda: PlainLoop(case, data, device), "step": partial(bare_loop, case)}
    turns = {}
    for name, build_loop in builders.items():
        measurement = Measurement(device, options.batch_size)
        loop = build_loop()
        turns[name] = (measurement, loop)
        drive(measurement.opening(options.warmup), loop.step)
    return turns


def compare(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a case; returns the summary of each loop, with its speed relative to the first."""
    steps = 1 + options.warmup + COUNTED_STEPS + options.blocks * options.steps
    steps_per_epoch = options.images // options.batch_size
    if steps > steps_per_epoch:
        raise UsageError(
            f"{steps} steps are asked for, an epoch has {steps_per_epoch}: lower --steps, --blocks or --batch-size"
        )
    turns = loops(case, options)
    fit_measurement = Measurement(torch.device(options.device), options.batch_size)
    with_fit = not (options.added_term or case.compared)

    def phases() -> Iterator[None]:
        if with_fit:
            yield from fit_measurement.opening(options.warmup)
        for _ in range(options.blocks):
            for measurement, loop in turns.values():
                drive(measurement.block(options.steps), loop.step)
            if with_fit:
                yield from fit_measurement.block(options.steps)

    if with_fit:
        fit(case, options, Phases(phases()))
    else:
        list(phases())
    results = {name: measurement.summary() for name, (measurement, _) in turns.items()}
    if with_fit:
        results["fit"] = fit_measurement.summary()
    first = next(iter(results.values()))["ms_per_step"]
    for numbers in results.values():
        numbers["times_as_fast"] = first / numbers["ms_per_step"]
    return results


def profile(case: Case, options: argparse.Namespace) -> None:
    """Print the time of ``options.steps`` steps by operation, in PyTorch's own table, for each loop."""
    for name, (_, loop) in loops(case, options).items():
        with torch.profiler.profile() as profiler:
            for _ in range(options.steps):
                loop.step()
        key = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=25)
        print(f"{case.name}: {LOOPS.get(name, name)}", table, sep="\n")


def show(case: Case, results: dict[str, Any]) -> None:
    """Print the numbers of a case, one row per loop; for methods, the time relative to the first."""
    relative = f"times {next(iter(results))}" if case.compared else "times as fast"
    table = Table("loop", "ms a step", "quartiles", "images/s", "peak MiB", "syncs", "first step, s", relative)
    for name, numbers in results.items():
        low, _, high = numbers["ms_quartiles"]
        peak = numbers["peak_memory_bytes"]
        syncs = numbers["host_syncs_per_step"]
        times = numbers["times_as_fast"]
        table.add_row(
            LOOPS.get(name, name),
            f"{numbers['ms_per_step']:,.1f}",
            f"{low:,.1f}-{high:,.1f}",
            f"{numbers['images_per_second']:,.1f}",
            "-" if peak is None else f"{peak / 2**20:,.0f}",
            "-" if syncs is None else f"{syncs:.1f}",
            f"{numbers['first_step_seconds']:.1f}",
            f"{1 / times if case.compared else times:.2f}",
        )
    Console(width=120).print(case.name, table, sep="\n")


def store(results: dict[str, Any]) -> Path:
    """Keep the numbers, without those of single steps, in the device's file; a case replaces its earlier numbers."""
    device = re.sub("[^a-z0-9]+", "-", results["environment"]["device"].lower())
    path = RESULTS / f"{device}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for case, loops_of_case in results["cases"].items():
        entry = {}
        for loop, numbers in loops_of_case.items():
            entry[loop] = {name: value for name, value in numbers.items() if name != "step_ms"}
        stored[f"{case} {results['options']}"] = entry | {"environment": results["environment"]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
    return path


def describe_options(options: argparse.Namespace) -> str:
    """Return the options that a measurement depends on, as text."""
    parts = [f"batch {options.batch_size}"]
    if options.precision:
        parts.append(options.precision)
    if options.compile:
        parts.append("compiled")
    if options.added_term:
        parts.append("a term")
    return ", ".join(parts)


def measure(options: argparse.Namespace) -> None:
    """Measure the cases of the command line, one after the other."""
    if min(options.batch_size, options.steps, options.blocks) < 1 or options.warmup < 0:
        raise UsageError("--batch-size, --steps and --blocks must be at least 1, --warmup at least 0")
    results: dict[str, Any] = {
        "options": describe_options(options),
        "environment": environment(torch.device(options.device)),
        "cases": {},
    }
    cases = NAMED if options.cases == ["all"] else tuple(find(name) for name in options.cases)
    for case in cases:
        if options.profile:
            profile(case, options)
            continue
        numbers = compare(case, options)
        show(case, numbers)
        results["cases"][case.name] = numbers
        options.out.write_text(json.dumps(results, indent=1))  # after every case, in case a long run is interrupted
        print(f"{options.out}: all numbers")
        if options.store:
            print(f"{store(results)}: summary")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a UsageError ends it with status 2."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in (*NAMED, METHOD_COSTS, *METHOD_COSTS.compared)))
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
