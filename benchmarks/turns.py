"""Let variants take turns, so that noise affects all alike, and compare them round by round."""

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from scipy.stats import t as student_t

from benchmarks.cases import Case
from benchmarks.entries import entries
from benchmarks.machine import software
from benchmarks.processes import Worker, run
from benchmarks.results import Numbers
from benchmarks.trees import Tree
from benchmarks.variants import Variant

CONFIDENCE = 0.95
Trees = Mapping[str | None, Tree]  # by commit, None for this checkout


def turns_of(case: Case, variants: Sequence[Variant]) -> dict[str, tuple[Case, Variant]]:
    """Return what takes turns, by name: the variants of a case, or KD and the method that is compared with it."""
    if case.compared:
        return {compared.method: (compared, Variant("step", variants[0].precision)) for compared in case.compared}
    return {variant.name: (case, variant) for variant in variants}


def in_turns(count: int, names: Sequence[str], take: Callable[[str], None]) -> None:
    """Call ``take`` for each name in ``count`` rounds, every second one backwards: a drift then cancels out."""
    for index in range(count):
        for name in names if index % 2 == 0 else reversed(names):
            take(name)


def compare(
    case: Case, variants: Sequence[Variant], options: Namespace, trees: Trees, folder: Path
) -> dict[str, Numbers]:
    """Measure steps of a case in one process per variant; returns the numbers of each, relative to the first."""
    workers: dict[str, Worker] = {}
    results: dict[str, Numbers] = {}
    blocks: dict[str, list[list[float]]] = {}

    def take(name: str) -> None:
        answer = workers[name].ask(options.steps, options.profile)
        if options.profile:
            print(workers[name].name, answer["profile"], sep="\n")
            return
        blocks[name].append(answer["step_ms"])
        results[name]["peak_memory_bytes"] = answer["peak_memory_bytes"]

    folder.mkdir()
    with ExitStack() as stack:
        for name, (measured, variant) in turns_of(case, variants).items():
            worker = Worker(measured, variant, trees[variant.commit], folder / str(len(workers)), options)
            stack.callback(worker.close)
            workers[name] = worker
            results[name] = worker.open()
            print(f"{worker.name}: first step after {results[name]['first_step_seconds']:.1f} s", flush=True)
            blocks[name] = []
        in_turns(1 if options.profile else options.rounds, list(workers), take)
    if options.profile:
        return {}
    for name, numbers in results.items():
        step_ms = [step for block in blocks[name] for step in block]
        median = statistics.median(step_ms)
        numbers |= {
            "ms_per_step": median,
            "ms_quartiles": quartiles(step_ms),
            "images_per_second": 1000 * options.batch_size / median,
            "step_ms": step_ms,
        }
    medians = {name: [statistics.median(block) for block in blocks[name]] for name in results}
    return relative_to_first(results, medians)


def compare_methods(case: Case, precision: str, options: Namespace, tree: Tree, folder: Path) -> dict[str, Numbers]:
    """Measure a step of each method in turns with KD, in one process; returns the numbers by the method's name."""
    folder.mkdir()
    results: dict[str, Numbers] = {}
    worker = Worker(case.compared[0], Variant("costs", precision), tree, folder / "0", options)
    try:
        details = worker.open()
        for entry in entries(case.compared):
            worker.connection.send({"entry": entry, "steps": options.steps, "rounds": options.rounds})
            answer = worker.answer()
            numbers = costs(answer.pop("step_ms"), answer.pop("reference_ms"))
            images = {name: count / options.batch_size for name, count in answer.items() if "passes" not in name}
            results[entry.name] = details | {"class": entry.class_name} | numbers | answer | images
            print(
                f"{entry.name}: {numbers['relative']:.2f} times {numbers['reference_ms_per_step']:.0f} ms", flush=True
            )
    finally:
        worker.close()
    return results


def costs(step_ms: list[list[float]], reference_ms: list[list[float]]) -> Numbers:
    """Return the median of the steps, and of the rounds' ratios to the reference, with their quartiles."""
    medians = [[statistics.median(block) for block in blocks] for blocks in (step_ms, reference_ms)]
    ratios = [step / reference for step, reference in zip(*medians, strict=True)]
    steps = [step for block in step_ms for step in block]
    return {
        "ms_per_step": statistics.median(steps),
        "ms_quartiles": quartiles(steps),
        "reference_ms_per_step": statistics.median(step for block in reference_ms for step in block),
        "relative": statistics.median(ratios),
        "relative_quartiles": quartiles(ratios),
    }


def compare_commands(
    command: str, commits: Sequence[str | None], rounds: int, trees: Trees, folder: Path
) -> dict[str, Numbers]:
    """Measure a whole command of each tree; returns its numbers by commit, relative to the first."""
    names = {f"command@{commit}" if commit else "command": trees[commit] for commit in commits}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[int]] = {name: [] for name in names}

    def take(name: str) -> None:
        duration, peak = run(command, names[name], folder / f"command-{sum(map(len, seconds.values()))}")
        seconds[name].append(duration)
        peaks[name].append(peak)

    in_turns(rounds, list(names), take)
    results: dict[str, Numbers] = {}
    for name, tree in names.items():
        results[name] = {
            **software(),
            "commit": tree.commit,
            "seconds": statistics.median(seconds[name]),
            "seconds_quartiles": quartiles(seconds[name]),
            "peak_memory_bytes": max(peaks[name]),
        }
    return relative_to_first(results, seconds)


def quartiles(values: list[float]) -> list[float]:
    """Return the quartiles of at least one value, the median among them."""
    return statistics.quantiles([*values, statistics.median(values)], n=4, method="inclusive")


def relative_to_first(results: dict[str, Numbers], durations: Mapping[str, Sequence[float]]) -> dict[str, Numbers]:
    """Add to the numbers how many times as fast as the first each is, with the interval."""
    first = next(iter(results))
    for name, numbers in results.items():
        times, interval = speed_up(durations[first], durations[name])
        numbers |= {"times_as_fast": times, "times_interval": interval}
    return results


def speed_up(first: Sequence[float], other: Sequence[float]) -> tuple[float, list[float] | None]:
    """Return how many times as fast the other is, and the 95 % interval, from the durations of each round.

    Both belong to the geometric mean of the rounds' ratios (Student's t). One round has no interval.
    """
    logarithms = [math.log(a / b) for a, b in zip(first, other, strict=True)]
    mean = statistics.fmean(logarithms)
    if len(logarithms) == 1:
        return math.exp(mean), None
    error = statistics.stdev(logarithms) / math.sqrt(len(logarithms))
    margin = float(student_t.ppf((1 + CONFIDENCE) / 2, len(logarithms) - 1)) * error
    return math.exp(mean), [math.exp(mean - margin), math.exp(mean + margin)]
