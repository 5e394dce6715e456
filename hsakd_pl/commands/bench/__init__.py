"""Run methods x pairs of networks x seeds from a table, and compare the results with published numbers.

Tables: classic, newer, views, other-protocols, small, few-shot, hsakd, mutual, transfer, or your own CSV files, whose
methods are added. Runs with a result are skipped, interrupted ones resume, and what a method needs (a teacher, a
projection head) is trained before it, with seed 0. Each run is an ordinary fit in its folder below --folder. Further
options are those of fit, for all runs, for example --trainer.max_epochs 10. As a SLURM array:
scripts/slurm/bench.sbatch.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_pl.commands.options import InvalidValueError, check_effective, check_unrepeated, parse_names, parse_seeds
from hsakd_pl.errors import UsageError
from hsakd_pl.files.escaping import show
from hsakd_pl.report import TABLE_FORMATS

if TYPE_CHECKING:
    from hsakd_pl.commands.bench.tasks import Task


DEFAULTS: dict[str, Any] = {
    "seeds": [0],
    "teachers": [],
    "folder": Path("runs"),
    "teacher_answers": None,
    "teacher_answers_gb": None,
    "teacher_answers_top": None,
    "teacher_answers_dtype": None,
    "format": "table",
}
# Options of kept answers, which have no effect without a folder of them
ANSWER_OPTIONS = ("teacher_answers_gb", "teacher_answers_top", "teacher_answers_dtype")
# Options of fit that the command sets, and what decides instead
REPLACED = {
    "--seed_everything": "--seeds",
    "--ckpt_path": "the checkpoint in each run's folder",
    "--trainer.default_root_dir": "--folder",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit``."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="name of a table, or a CSV file")
    parser.add_argument("--methods", type=parse_names, default=[], metavar="NAMES", help="KD,DKD (default: all)")
    parser.add_argument(
        "--pairs", type=parse_names, default=[], metavar="NAMES", help="TEACHER-STUDENT,... (default: all)"
    )
    parser.add_argument("--seeds", type=parse_seeds, default=DEFAULTS["seeds"], help="0-4, or 0,7,9 (default: 0)")
    parser.add_argument(
        "--teachers",
        type=parse_teacher,
        nargs="+",
        default=DEFAULTS["teachers"],
        metavar="NAME=FILE",
        help="weights of trained teachers, by the name of a network or recipe",
    )
    parser.add_argument("--folder", type=Path, default=DEFAULTS["folder"], help="folder of all runs (default: runs)")
    parser.add_argument(
        "--teacher-answers",
        metavar="FOLDER",
        help="keep the teachers' logits there, for all methods that need nothing else of a teacher",
    )
    parser.add_argument(
        "--teacher-answers-gb", type=float, metavar="N", help="largest size of that folder, in 10^9 bytes (default: 20)"
    )
    parser.add_argument(
        "--teacher-answers-top", type=int, metavar="K", help="keep and use only the K largest logits of each image"
    )
    parser.add_argument(
        "--teacher-answers-dtype", choices=("float32", "float16"), help="type in which they are kept (default: float32)"
    )
    parser.add_argument("--task", type=int, metavar="N", help="run only task N of --dry-run, as in a SLURM array")
    parser.add_argument(
        "--list", action="store_true", help="show methods, pairs and published numbers, and run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the tasks and how long they take, measured over a few steps"
    )
    parser.add_argument(
        "--format", choices=TABLE_FORMATS, default=DEFAULTS["format"], help="format of the printed table"
    )
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Run all tasks that have no result yet, one after the other, then show the table."""
    from hsakd_pl.commands.bench.cells import select_cells
    from hsakd_pl.files import local_path
    from hsakd_pl.recipes import BENCH_TABLES
    from hsakd_pl.report.matrix import matrix, published

    if not options.tables:
        raise UsageError(f"bench needs a table: {', '.join(BENCH_TABLES)}, or a CSV file")
    check_effective(options.fit_options, REPLACED, "bench")
    check_unrepeated("teachers", [name for name, _ in options.teachers])
    check_modes(options)
    cells, recipes = select_cells(options.tables, options.methods, options.pairs)
    if options.list:
        show(published(cells, recipes, options.format))
        return

    from hsakd_pl.commands.bench.tasks import Bench

    folder = local_path("folder", options.folder)
    answers = answer_options(options)
    bench = Bench(cells, recipes, options.seeds, folder, dict(options.teachers), options.fit_options, answers)
    tasks = bench.tasks()
    bench.check_teachers(tasks)
    if options.task is not None:
        if not 0 <= options.task < len(tasks):
            raise UsageError(f"task is {options.task}: choose one from 0 to {len(tasks) - 1}; --dry-run lists them")
        bench.check_finished([tasks[options.task]])
        bench.run(tasks[options.task])
        return
    bench.check_finished(tasks)
    if options.dry_run:
        from hsakd_pl.commands.bench.estimate import show_plan

        show_plan(bench, tasks)
        return
    failed = [
        task.recipe
        for number, task in enumerate(tasks)
        if bench.state(task) != "done" and not _run_task(task, number, options)
    ]
    show(matrix(cells, recipes, folder, options.format))
    if failed:
        raise UsageError(f"{', '.join(failed)} failed; see the errors above, and run the bench again after fixing them")


def check_modes(options: Namespace) -> None:
    """Raise UsageError for options that have no effect together, such as seeds where nothing is run."""
    modes = [mode for mode, is_chosen in _modes(options).items() if is_chosen]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} exclude each other: choose one")
    if options.list:
        effectless = ("seeds", "teachers", "folder", "teacher_answers", *ANSWER_OPTIONS)
        given = [f"--{name.replace('_', '-')}" for name in effectless if getattr(options, name) != DEFAULTS[name]]
        given += [argument for argument in options.fit_options if argument.startswith("-")]
        if given:
            raise UsageError(f"{', '.join(given)} has no effect with --list, which runs nothing: leave it out")
    elif options.dry_run and options.format != DEFAULTS["format"]:
        raise UsageError("--format has no effect with --dry-run, which shows no table of results: leave it out")


def _modes(options: Namespace) -> dict[str, bool]:
    return {"--list": options.list, "--dry-run": options.dry_run, "--task": options.task is not None}


def answer_options(options: Namespace) -> list[str]:
    """Return the options of ``fit`` that keep a teacher's answers; raises UsageError for others without a folder."""
    given = {name: getattr(options, name) for name in ANSWER_OPTIONS if getattr(options, name) is not None}
    if options.teacher_answers is None:
        for name in given:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} has no effect without --teacher-answers: set both, or leave it out")
        return []
    arguments = []
    for name, value in ({"teacher_answers": options.teacher_answers} | given).items():
        arguments += [f"--model.init_args.{name}", str(value)]
    return arguments


def parse_teacher(text: str) -> tuple[str, str]:
    """Return name and file of ``wrn_40_2=FILE``, or of ``teacher_joint_wrn_40_2=FILE`` for that recipe alone."""
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise InvalidValueError(f"expected NAME=FILE, got {text}")
    return name, file


def _run_task(task: "Task", number: int, options: Namespace) -> bool:
    """Run a task in a process of its own, and return whether it succeeded."""
    from hsakd_pl.commands.seeds import run_process

    show(f"task {number}: {task.recipe}, seed {task.seed}")
    return run_process([*options.arguments, "--task", str(number)], options.debug) == 0
