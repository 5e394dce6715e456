"""Train and test a recipe with several seeds: hsakd sweep --seeds 0-2 --config FILE, and any other option of fit.

Seed k runs in the folder seed<k> inside the recipe's. Seeds that have a result are left as they are, interrupted ones
resume. One seed runs in this process, as in a task of a SLURM array; several run one after the other.
"""

import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import RESULT_FILE, TEST_FILE, is_finished
from hsakd_pl.runs.signals import Interrupted


class ParsedFit(HSAKDCLI):
    """Reads the options of ``fit`` as they would take effect, and leaves it at that."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": HSAKDCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def parse_seeds(text: str) -> list[int]:
    """``"0-2"`` -> [0, 1, 2], ``"0,5"`` -> [0, 5]; ValueError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(f"no seed in {text}")
    return seeds


def folder_of(options: list[str]) -> Path:
    """Where these options of ``fit`` put a run; UsageError if they do not say."""
    folder = ParsedFit(args=["fit", *options], seed_everything_default=False).config.fit.trainer.default_root_dir
    if folder is None:
        raise UsageError("a sweep needs a folder: set --trainer.default_root_dir")
    return Path(folder)


def run_seed(seed: int, options: list[str], recipe: Path) -> None:
    """Train with one seed in a folder inside the recipe's, or go on there, and test the result."""
    folder = recipe / f"seed{seed}"
    if is_finished(folder / RESULT_FILE):
        print(f"seed {seed} has a result: {folder / RESULT_FILE}")
    else:
        resume = ["--ckpt_path", "last"] if (folder / "last.ckpt").exists() else []
        main(["fit", *options, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *resume])
    if not (folder / TEST_FILE).exists() and (folder / "last.ckpt").exists() and (folder / "config.yaml").exists():
        main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"])


def finished(command: list[str]) -> int:
    """Run a command to its end and give its status; what asks this process to stop goes to the run, which saves."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except Interrupted as asked:
        if asked.status != 128 + signal.SIGINT:  # Ctrl-C reaches all processes of a terminal
            process.terminate()
        return process.wait()


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Run the seeds, then show their results."""
    parser.add_argument("--seeds", type=parse_seeds, required=True, help="0-4, or 0,7,9")
    asked, options = parser.parse_known_args(args)
    folder = folder_of(options)
    if len(asked.seeds) == 1:
        return run_seed(asked.seeds[0], options, folder)
    for seed in asked.seeds:
        again = [sys.executable, "-m", "hsakd_pl", "sweep", "--seeds", str(seed), *options]
        if status := finished(again):
            sys.exit(status)  # the run has said why
    return main(["report", str(folder)])
