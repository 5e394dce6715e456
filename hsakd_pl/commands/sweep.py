"""Train and test a recipe with several seeds: hsakd sweep --seeds 0-2 --config FILE, and any other option of fit.

Seed k runs in the folder seed<k> inside the recipe's. Seeds with a result are skipped, interrupted ones resume. One
seed runs in this process, as in a task of a SLURM array; several run one after the other.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from hsakd_pl.commands.options import check_effective, parse_seeds
from hsakd_pl.files.escaping import show

# Options of fit that the command sets, and what decides instead
REPLACED = {"--seed_everything": "--seeds", "--ckpt_path": "the checkpoint in each seed's folder"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit``."""
    parser.add_argument("--seeds", type=parse_seeds, required=True, help="0-4, or 0,7,9")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs and how long they take, measured over a few steps"
    )
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Run the seeds, then show their results; raises UsageError for a seed with a result of other options."""
    from hsakd_pl.commands.report import report
    from hsakd_pl.commands.seeds import recipe_folder, run_process, run_seed

    check_effective(options.fit_options, REPLACED, "sweep")
    folder = recipe_folder(options.fit_options)
    if options.dry_run:
        show_plan(options.seeds, folder, options.fit_options)
        return
    if len(options.seeds) == 1:
        run_seed(options.seeds[0], options.fit_options, folder)
        return
    for seed in options.seeds:
        status = run_process(["sweep", "--seeds", str(seed), *options.fit_options], options.debug)
        if status:
            sys.exit(status)  # the run has printed why
    report(folder)


def show_plan(seeds: list[int], folder: Path, fit_options: list[str]) -> None:
    """Print the state of each seed's run and the hours that it takes, and those of all of them."""
    from hsakd_pl.commands.estimate import device_name, measured_hours
    from hsakd_pl.commands.seeds import state_of

    states = {seed: state_of(folder / f"seed{seed}") for seed in seeds}
    waiting = [seed for seed, state in states.items() if state in ("to do", "begun")]
    hours = measured_hours(fit_options) if waiting else 0.0
    for seed, state in states.items():
        show(f"{state:<7} {hours if seed in waiting else 0:>8.2f} h  seed {seed}")
    print(f"{hours * len(waiting):.1f} hours, one after the other, on this machine ({device_name()})")
