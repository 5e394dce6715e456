"""Measure the speed and memory of training on this machine, compared with a plain PyTorch loop or earlier commits."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.cases import COSTS, FORMS, METHOD_COSTS, NAMED, TABLE, Case, find
from benchmarks.machine import device_name
from benchmarks.processes import busy
from benchmarks.trees import CHECKOUT, Tree, checkout, earlier
from benchmarks.turns import Trees, compare, compare_commands, compare_methods
from benchmarks.variants import FORM, LOOPS, PRECISIONS, Variant, parse
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

GROUPS = {"all": NAMED, "table": TABLE}
OTHERS = ("answers", "exports", "pictures", "predictions")  # modules that measure something else than steps
SETTINGS = ("batch_size", "rounds", "steps", "busy")  # stored with a row
# Of the table: few steps in many rounds, an estimated 25 minutes on two cores
TABLE_DEFAULTS: dict[str, Any] = {
    "loops": ["plain", "plain-compiled", "fit@5c4e141", "fit-bf16@5c4e141", "fit", "fit-bf16"],
    "batch_size": 16,
    "warmup": 1,
    "steps": 2,
    "rounds": 4,
    "store": True,
}
# Of the methods' costs: under 10 minutes on two cores
COST_DEFAULTS: dict[str, Any] = {"batch_size": 16, "warmup": 1, "steps": 2, "rounds": 10}
DEFAULTS = {"table": TABLE_DEFAULTS, COSTS: COST_DEFAULTS}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument(
        "cases",
        nargs="*",
        default=[NAMED[0].name],
        help=f"{FORMS}; all: those of the paper; table: those of the table in README.md, as it was measured, without "
        "the rows that are stored already; render: only write the tables of the documents; method-costs: a step "
        "of each method relative to one of KD; answers: steps that read kept answers, exports: students in runtimes, "
        "pictures: files on their way into batches, and predictions: what evaluation computes, each with options of "
        "its own",
    )
    options.add_argument("--list", action="store_true", help="print the paper's cases, then the methods', and stop")
    loops = ", ".join(f"{name}: {meaning}" for name, meaning in LOOPS.items())
    options.add_argument("--loops", nargs="+", metavar=FORM, help=f"what takes turns; {loops}")
    options.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the loops that name none")
    options.add_argument("--against", metavar="COMMIT", help="compare fit, or --command, with that of a commit")
    options.add_argument("--command", help="measure a whole command instead of steps, such as 'hsakd fit ...'")
    options.add_argument("--busy", type=int, default=0, help="number of processes that keep a core busy meanwhile")
    options.add_argument("--profile", action="store_true", help="show a step's time by operation (torch.profiler)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu() else "cpu")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--steps", type=int, default=20, help="timed steps per round")
    options.add_argument("--warmup", type=int, default=10, help="untimed steps, after the first")
    options.add_argument("--rounds", type=int, default=3, help="number of turns of each loop or command")
    options.add_argument("--images", type=int, default=50_000, help="number of images of noise (32 x 32)")
    options.add_argument(
        "--out", type=Path, default=Path("results.json"), help="JSON file, in which rows of other names remain"
    )
    options.add_argument(
        "--store", action="store_true", help="keep the numbers in benchmarks/results and the documents"
    )
    options.add_argument("--again", action="store_true", help="measure also the rows of the table that are stored")
    return options


def has_gpu() -> bool:
    """Return whether the driver of an NVIDIA GPU is there, without importing PyTorch."""
    return Path("/dev/nvidia0").exists()


def variants_of(options: argparse.Namespace) -> list[Variant]:
    """Return the variants that take turns, the reference first."""
    names = options.loops or (["fit"] if options.against else ["plain", "step", "fit"])
    variants = [parse(name, options.precision) for name in names]
    if options.against:
        before = [variant._replace(commit=options.against) for variant in variants if variant.loop == "fit"]
        variants = [*before, *variants]
    return list(dict.fromkeys(variants))


def check(options: argparse.Namespace, cases: Sequence[Case], variants: Sequence[Variant]) -> None:
    """Raise UsageError for what cannot be measured."""
    for case in cases:
        if case.method != "student" and "added" in [variant.loop for variant in variants]:
            raise UsageError(f"the loop added is measured on a student, not on {case.name}")
        if case.method == COSTS and (options.profile or options.loops or options.against):
            raise UsageError(f"{COSTS} measures steps alone: profile a method, or name loops, with a case of its own")
    if min(options.batch_size, options.steps, options.rounds) < 1 or min(options.warmup, options.busy) < 0:
        raise UsageError("--batch-size, --steps and --rounds must be at least 1, --warmup and --busy at least 0")
    steps = 1 + options.warmup + 5 + options.rounds * options.steps  # 5 in which host syncs are counted
    steps_per_epoch = options.images // options.batch_size
    if not options.command and steps > steps_per_epoch:
        raise UsageError(
            f"{steps} steps are asked for, an epoch has {steps_per_epoch}: lower --steps, --rounds or --batch-size"
        )


def show(name: str, numbers_by_loop: dict[str, results.Numbers]) -> None:
    """Print the numbers of a case, one row per loop or method."""
    if name.startswith(f"{COSTS}:"):
        print(name, *results.cost_table({name: numbers_by_loop}), sep="\n")
        return
    table = Table("loop", "time", "quartiles", "peak MiB", "syncs", "first step, s", "times as fast", "95 % interval")
    for loop, numbers in numbers_by_loop.items():
        interval = numbers["times_interval"]
        syncs = numbers.get("host_syncs_per_step")
        first_step = numbers.get("first_step_seconds")
        table.add_row(
            loop,
            results.duration(numbers),
            results.quartiles(numbers),
            results.megabytes(numbers),
            "-" if syncs is None else f"{syncs:.1f}",
            "-" if first_step is None else f"{first_step:.1f}",
            f"{numbers['times_as_fast']:.2f}",
            f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "-",
        )
    Console(width=140).print(name, table, sep="\n")


def trees_of(commits: Sequence[str | None], folder: Path) -> Trees:
    """Return this checkout, and each of the commits in a folder of its own."""
    trees: dict[str | None, Tree] = {None: checkout()}
    for commit in commits:
        if commit is not None and commit not in trees:
            trees[commit] = earlier(commit, folder / f"tree-{len(trees)}")
    return trees


def measured_command(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, results.Row]]:
    """Yield the name and the numbers of the whole command."""
    commits = [options.against, None] if options.against else [None]
    yield options.command, compare_commands(options.command, commits, options.rounds, trees_of(commits, folder), folder)


def measured_cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, results.Row]]:
    """Yield the name and the numbers of each case, one after the other."""
    cases = GROUPS.get(options.cases[0]) or tuple(find(name) for name in options.cases)
    variants = variants_of(options)
    check(options, cases, variants)
    trees = trees_of([variant.commit for variant in variants], folder)
    loops = [variant.name for variant in variants]
    device = device_name(options.device)
    for index, case in enumerate(cases):
        name = f"{case.name} batch {options.batch_size}"
        if options.cases == ["table"] and not options.again:
            stored = results.read(results.path_of(device)).get(with_busy(name, options), {})
            if results.is_current(stored, loops, trees[None].commit):
                print(f"{name}: stored already")
                continue
        place = folder / f"case-{index}"
        if case.method == COSTS:
            yield name, compare_methods(case, variants[0].precision, options, trees[None], place)
            continue
        numbers = compare(case, variants, options, trees, place)
        if not options.profile:
            yield name, numbers


def with_busy(name: str, options: argparse.Namespace) -> str:
    """Return the name of a row, with the number of busy processes."""
    return f"{name}, {options.busy} busy" if options.busy else name


def measure(options: argparse.Namespace) -> None:
    """Measure what the command line names, and print and write each row when it is finished."""
    measured = measured_command if options.command else measured_cases
    options.out = local_path("--out", options.out)
    rows = {} if options.profile else results.read_replaceable(options.out)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, busy(options.busy):
        for short_name, numbers in measured(options, Path(folder)):
            name = with_busy(short_name, options)
            show(name, numbers)
            environment = {"device": device_name(options.device), "date": time.strftime("%Y-%m-%d")}
            environment |= {setting: getattr(options, setting) for setting in SETTINGS}
            rows[name] = numbers | {"environment": environment}
            results.write(options.out, rows)
            print(f"{options.out}: all numbers")
            if options.store:
                for path in [results.store(name, rows[name]), *results.render()]:
                    print(f"{path}: summary")
                if name.startswith(f"{COSTS}:"):
                    write_method_pages()


def write_method_pages() -> None:
    """Write the pages of the methods, which hold the costs of their steps."""
    subprocess.run([sys.executable, CHECKOUT / "scripts" / "method_pages.py"], env=checkout().environment, check=True)


def measure_otherwise(name: str, arguments: list[str]) -> None:
    """Measure something else than steps: ``python -m benchmarks NAME --help``."""
    try:
        import_module(f"benchmarks.{name}").main(arguments)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a UsageError ends it with status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in OTHERS:
        measure_otherwise(words[0], words[1:])
        return
    command_line = parser()
    options = command_line.parse_args(arguments)
    method = options.cases[0].partition(":")[0]
    if method in DEFAULTS:
        command_line.set_defaults(**DEFAULTS[method])
        options = command_line.parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in (*NAMED, METHOD_COSTS, *METHOD_COSTS.compared)))
        return
    try:
        if options.cases == ["render"]:
            results.render()
            write_method_pages()
        else:
            measure(options)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    for interruption in (signal.SIGINT, signal.SIGTERM):  # the first is ignored in the background, unless it is set
        signal.signal(interruption, lambda number, _: sys.exit(128 + number))
    main()
