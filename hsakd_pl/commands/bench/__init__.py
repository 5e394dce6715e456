"""Run methods x pairs of networks x seeds from a table, and compare the results with published numbers.

Tables: classic, few-shot, hsakd, mutual, transfer, or your own CSV files, whose methods are added. Runs with a result
are skipped, interrupted ones resume, and what a method needs (a teacher, a projection head) is trained before it, with
seed 0. Each run is an ordinary fit in its folder below --folder. Further options are those of fit, for all runs, for
example --trainer.max_epochs 10. As a SLURM array: scripts/slurm/bench.sbatch.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hsakd_pl.commands.sweep import parse_seeds
from hsakd_pl.errors import UsageError
from hsakd_pl.report import TABLE_FORMATS

if TYPE_CHECKING:
    from hsakd_pl.commands.bench.tasks import Task


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit``."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="name of a table, or a CSV file")
    parser.add_argument("--methods", type=_names, default=[], metavar="NAMES", help="KD,DKD (default: all)")
    parser.add_argument("--pairs", type=_names, default=[], metavar="NAMES", help="TEACHER-STUDENT,... (default: all)")
    parser.add_argument("--seeds", type=parse_seeds, default=[0], help="0-4, or 0,7,9 (default: 0)")
    parser.add_argument(
        "--teachers",
        type=parse_teacher,
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="weights of trained teachers, by the name of a network or recipe",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--task", type=int, metavar="N", help="run only task N of --dry-run, as in a SLURM array")
    parser.add_argument(
        "--list", action="store_true", help="show methods, pairs and published numbers, and run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the tasks and how long they take, measured over a few steps"
    )
    parser.add_argument("--format", choices=TABLE_FORMATS, default="table", help="format of the printed table")
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Run all tasks that have no result yet, one after the other, then show the table."""
    from hsakd_pl.commands.bench.estimate import show_plan
    from hsakd_pl.commands.bench.tasks import Bench, select_cells
    from hsakd_pl.files import local_path
    from hsakd_pl.recipes import BENCH_TABLES
    from hsakd_pl.report.matrix import matrix, published
    from hsakd_pl.report.table import format_table

    if not options.tables:
        raise UsageError(f"bench needs a table: {', '.join(BENCH_TABLES)}, or a CSV file")
    cells, recipes = select_cells(options.tables, options.methods, options.pairs)
    if options.list:
        table = published(cells)
        print(format_table(table, table, options.format))
        return
    folder = local_path("folder", options.folder)
    bench = Bench(cells, recipes, options.seeds, folder, dict(options.teachers), options.fit_options)
    tasks = bench.tasks()
    if options.task is not None:
        if not 0 <= options.task < len(tasks):
            raise UsageError(f"task is {options.task}: choose one from 0 to {len(tasks) - 1}; --dry-run lists them")
        bench.run(tasks[options.task])
        return
    if options.dry_run:
        show_plan(bench, tasks)
        return
    failed = [
        task.recipe
        for number, task in enumerate(tasks)
        if bench.state(task) != "done" and not _run_task(task, number, options)
    ]
    print(matrix(cells, recipes, folder, options.format))
    if failed:
        raise UsageError(f"{', '.join(failed)} failed; see the errors above, and run the bench again after fixing them")


def parse_teacher(text: str) -> tuple[str, str]:
    """Return name and file of ``wrn_40_2=FILE``, or of ``teacher_joint_wrn_40_2=FILE`` for that recipe alone."""
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise ValueError(f"expected NAME=FILE, got {text}")
    return name, file


def _names(text: str) -> list[str]:
    return text.split(",")


def _run_task(task: "Task", number: int, options: Namespace) -> bool:
    """Run a task in a process of its own, and return whether it succeeded."""
    from hsakd_pl.commands.seeds import run_process

    print(f"task {number}: {task.recipe}, seed {task.seed}", flush=True)
    return run_process([*options.arguments, "--task", str(number)], options.debug) == 0
