"""How fast training is on this machine, beside a plain PyTorch loop that is measured in the same process.

Each loop's numbers, with settings and versions, go into a JSON file; tables go to the terminal.
"""

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.breakdown import breakdown
from benchmarks.cases import FORMS, NAMED, find
from benchmarks.compare import compare
from benchmarks.growth import growth
from benchmarks.inputs import limit
from benchmarks.report import environment, show_breakdown, show_comparison, show_growth, show_limit
from benchmarks.settings import Settings
from hsakd_pl.errors import UsageError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = NAMED[0].name
    forms = ", ".join(FORMS.values())
    options.add_argument("cases", nargs="*", default=[default], help=f"{forms}; all: those of the paper")
    options.add_argument("--list", action="store_true", help="print the paper's cases and stop")
    modes = options.add_mutually_exclusive_group()
    modes.add_argument("--profile", action="store_true", help="where a step's time goes, instead of how long it takes")
    modes.add_argument("--epochs", type=int, help="fit so many epochs of --steps batches: is the last like the second?")
    modes.add_argument("--input", metavar="FOLDER", help="ImageNet's class folders: does the loader or the step limit?")
    options.add_argument("--workers", type=int, help="decoding processes of --input; by default what a fit would take")
    options.add_argument("--decode-on-device", action="store_true", help="for --input: its workers only read")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--batch-size", type=int, default=Settings.batch_size)
    options.add_argument("--steps", type=int, default=Settings.steps, help="timed steps of a block")
    options.add_argument("--warmup", type=int, default=Settings.warmup, help="steps before, after the first")
    options.add_argument("--blocks", type=int, default=Settings.blocks, help="how often the loops take turns")
    options.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="of ours; the plain loop keeps fp32")
    options.add_argument("--compile", action="store_true", help="compile=True for our modules")
    options.add_argument("--compile-options", type=json.loads, metavar="JSON", help="compile_options for our modules")
    options.add_argument("--data", metavar="ROOT", help="folder of CIFAR-100; by default noise of the same form")
    options.add_argument("--images", type=int, default=Settings.images, help="of that noise")
    options.add_argument("--out", type=Path, default=Path("results.json"), help="JSON file")
    return options


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for, one case after the other; returns what goes into the file."""
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(args, name) for name in names})
    if min(settings.batch_size, settings.steps, settings.blocks) < 1 or settings.warmup < 0:
        raise UsageError("--batch-size, --steps and --blocks must be at least 1, --warmup at least 0")
    cases = NAMED if args.cases == ["all"] else tuple(find(name) for name in args.cases)
    results = {"settings": dataclasses.asdict(settings), "environment": environment(settings.torch_device)}
    if args.input is not None:
        results["input"] = limit(settings, args.input, args.workers, args.decode_on_device)
        show_limit(results["input"])
        return results
    mode = "profiles" if args.profile else "cases" if args.epochs is None else "growth"
    results[mode] = {}
    for case in cases:
        if args.profile:
            results[mode][case.name] = breakdown(case, settings)
            show_breakdown(case.name, results[mode][case.name])
        elif args.epochs is not None:
            results[mode][case.name] = growth(case, settings, args.epochs)
            show_growth(case.name, results[mode][case.name])
        else:
            results[mode][case.name] = compare(case, settings)
            show_comparison(case.name, results[mode][case.name])
        args.out.write_text(json.dumps(results, indent=1))  # after every case: a long run may be cut short
    return results


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with status 2."""
    args = parser().parse_args(arguments)
    if args.list:
        print("\n".join(case.name for case in NAMED))
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        args.out.write_text(json.dumps(measure(args), indent=1))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{args.out}: the numbers in full")


if __name__ == "__main__":
    main()
