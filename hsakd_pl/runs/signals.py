"""Signals that ask a run to stop: heeded between two steps, after everything has been saved."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from hsakd_pl.runs.interrupted import STOPPING
from hsakd_pl.runs.interrupted import Interrupted as Interrupted

REQUEUEING = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM's in Lightning and in scripts/slurm, and submitit's
SECONDS_TO_INSIST = 2  # torchrun repeats to its processes what the terminal has told them already


class Signals:
    """Notes signals while a run trains, until it can obey; Ctrl-C once more, after two seconds, is obeyed at once.

    SIGUSR1 and SIGUSR2 are noted where something waits for them: a handler of the user's own, such as submitit's, or
    SLURM, which is then told to start the job again.

    Args:
        checkpoint: the file that the run keeps.
        again: the command that continues the run from there.
    """

    def __init__(self, checkpoint: str, again: str) -> None:
        self.checkpoint, self.again, self.received, self.since = checkpoint, again, 0, 0.0
        self.listeners: dict[int, Callable[[int, None], object]] = {}

    def take_over(self, trainer: pl.Trainer) -> None:
        """Note signals from now on; Lightning has set its own by now, and restores what was there when it ends."""
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for signum in REQUEUEING:
            handler = signal.getsignal(signum)
            if callable(handler) and handler != self._note and type(handler).__module__.split(".")[0] != pl.__name__:
                self.listeners[signum] = handler
            elif requeued:
                self.listeners.setdefault(signum, _requeue)
        for each in (*STOPPING, *self.listeners):
            signal.signal(each, self._note)

    def obey(self, trainer: pl.Trainer) -> None:
        """End the run by :class:`Interrupted`, or hand the job back; the checkpoint has just been written."""
        signum, self.received = self.received, 0
        if trainer.strategy.reduce_boolean_decision(signum in STOPPING, all=False):
            where = f"epoch {trainer.current_epoch}, after {trainer.global_step} steps"
            message = f"in {where}: {self.checkpoint} holds all of it. This continues:\n{self.again}"
            raise Interrupted(signum if signum in STOPPING else signal.SIGTERM, message)
        # Lightning's handler of SIGTERM talks to the other processes, in the middle of anything: end at once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signum and (trainer.is_global_zero or self.listeners[signum] is not _requeue):
            rank_zero_info(f"{signal.Signals(signum).name}: {self.checkpoint} is written, the job is handed back")
            self.listeners[signum](signum, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        insisting = signum == self.received == signal.SIGINT and time.monotonic() > self.since + SECONDS_TO_INSIST
        if insisting:
            raise Interrupted(signum)
        if not self.received:
            self.since = time.monotonic()
        self.received = signum


def _requeue(signum: int, frame: None) -> None:
    """Ask SLURM to start this job, or this task of an array, again."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        rank_zero_warn(f"scontrol requeue {job} failed: {done.stderr.strip()}")
