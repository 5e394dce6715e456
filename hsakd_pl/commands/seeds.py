"""Runs of a recipe with one seed each, which ``sweep`` and ``bench`` share."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.records.formats import RESULT_FILE, is_finished
from hsakd_pl.records.measured import is_tested
from hsakd_pl.runs.signals import STOPPING, Interrupted

SECONDS_TO_OBEY = 5  # a signal, for a process in the middle of a step


class ParsedFit(HSAKDCLI):
    """Parse the options of ``fit`` as they would take effect, without building or running anything."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": HSAKDCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def recipe_folder(fit_options: list[str]) -> Path:
    """Return the folder in which these options of ``fit`` put a run; raises UsageError if they name none."""
    parsed = ParsedFit(args=["fit", *fit_options], seed_everything_default=False)
    folder = parsed.config.fit.trainer.default_root_dir
    if folder is None:
        raise UsageError("a sweep needs a folder: set --trainer.default_root_dir")
    return local_path("trainer.default_root_dir", folder)


def run_seed(seed: int, fit_options: list[str], recipe: Path) -> None:
    """Train with one seed in a folder inside the recipe's, or resume there, and test the result."""
    folder = recipe / f"seed{seed}"
    if is_finished(folder / RESULT_FILE):
        print(f"seed {seed} has a result: {folder / RESULT_FILE}")
    else:
        resume = ["--ckpt_path", "last"] if (folder / "last.ckpt").exists() else []
        placed = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
        HSAKDCLI(args=["fit", *fit_options, *placed, *resume])
    trained = (folder / "last.ckpt").exists() and (folder / "config.yaml").exists()
    if trained and not is_tested(folder):
        HSAKDCLI(args=["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"])


def run_process(arguments: list[str], debug: bool) -> int:
    """Run ``hsakd`` in a process of its own and return its status, 128 + the number of the signal that killed it.

    Raises :class:`Interrupted`, once the process has ended, if a signal stopped either of the two.
    """
    debug_option = ["--debug"] if debug else []
    process = subprocess.Popen([sys.executable, "-m", "hsakd_pl", *arguments, *debug_option])
    try:
        status = process.wait()
    except Interrupted as interruption:
        _end(process, told=interruption.status == 128 + signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
        raise
    status = status if status >= 0 else 128 - status
    if status - 128 in STOPPING:
        raise Interrupted(status - 128)
    return status


def _end(process: subprocess.Popen[bytes], told: bool) -> None:
    """Wait until a process has ended; tell it to, at once or, if it was probably ``told``, when it has not obeyed."""
    if told:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_OBEY)
    if process.poll() is None:
        process.terminate()
    process.wait()
