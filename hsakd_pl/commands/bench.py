"""Run methods x pairs of networks x seeds from a table, and show published numbers beside ours.

Tables: classic, few-shot, hsakd, mutual, transfer, or CSV files of one's own, whose methods join. What has a result is
left, what was interrupted goes on, and what a method needs (a teacher, a projection head) is trained before it, with
seed 0. Each run is an ordinary fit in its folder below --folder. Further options are those of fit, for all runs, for
example --trainer.max_epochs 10. As a SLURM array: scripts/slurm/bench.sbatch.
"""

import sys
from argparse import ArgumentParser
from itertools import takewhile
from pathlib import Path

from hsakd_pl.commands.estimate import show_plan
from hsakd_pl.commands.sweep import finished, parse_seeds
from hsakd_pl.commands.tasks import Bench, Task, select_cells
from hsakd_pl.errors import UsageError
from hsakd_pl.recipes import BENCH_TABLES
from hsakd_pl.report.matrix import matrix, published
from hsakd_pl.report.table import TABLE_FORMATS, format_table


def parse_teachers(text: str) -> tuple[str, str]:
    """``wrn_40_2=FILE``, ``teacher_joint_wrn_40_2=FILE`` where it is for that recipe alone; ValueError otherwise."""
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise ValueError(f"{text} is no NAME=FILE")
    return name, file


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Run what has no result yet, one after the other, then show the table."""
    parser.usage = f"{parser.prog} TABLE ... [options]"
    parser.add_argument("--methods", type=_names, default=[], metavar="NAMES", help="KD,DKD; by default all of them")
    parser.add_argument(
        "--pairs", type=_names, default=[], metavar="NAMES", help="<teacher>-<student>, separated by commas"
    )
    parser.add_argument("--seeds", type=parse_seeds, default=[0], help="0-4, or 0,7,9; by default 0")
    parser.add_argument(
        "--teachers", type=parse_teachers, nargs="+", default=[], metavar="NAME=FILE", help="trained ones"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="of all runs; by default runs")
    parser.add_argument("--task", type=int, metavar="N", help="run that task of --dry-run alone, as in a SLURM array")
    parser.add_argument(
        "--list", action="store_true", help="show methods, pairs and published numbers, and run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the tasks, and how long they take, from a few steps"
    )
    parser.add_argument("--format", choices=TABLE_FORMATS, default="table", help="of the table that is printed")
    tables = list(takewhile(lambda arg: not arg.startswith("-"), args))
    asked, options = parser.parse_known_args(args[len(tables) :])
    if not tables:
        raise UsageError(f"bench needs a table: {', '.join(BENCH_TABLES)}, or a CSV file")
    cells, recipes = select_cells(tables, asked.methods, asked.pairs)
    if asked.list:
        table = published(cells)
        print(format_table(table, table, asked.format))
        return
    bench = Bench(cells, recipes, asked.seeds, asked.folder, dict(asked.teachers), options)
    tasks = bench.tasks()
    if asked.task is not None:
        if not 0 <= asked.task < len(tasks):
            raise UsageError(f"task: {asked.task} is none of 0 to {len(tasks) - 1}, which --dry-run shows")
        bench.run(tasks[asked.task])
        return
    if asked.dry_run:
        show_plan(bench, tasks)
        return
    failed = [task.recipe for number, task in enumerate(tasks) if _failed(bench, task, number, args)]
    print(matrix(cells, recipes, asked.folder, asked.format))
    if failed:
        raise UsageError(
            f"{', '.join(failed)} ended with an error, which stands above: mend it and run the bench again"
        )


def _names(text: str) -> list[str]:
    return text.split(",")


def _failed(bench: Bench, task: Task, number: int, args: list[str]) -> bool:
    """Run a task in a process of its own; whether that ended with an error."""
    if bench.state(task) == "done":
        return False
    print(f"task {number}: {task.recipe}, seed {task.seed}", flush=True)
    status = finished([sys.executable, "-m", "hsakd_pl", "bench", *args, "--task", str(number)])
    if status > 128:  # asked to stop
        sys.exit(status)
    return status != 0
