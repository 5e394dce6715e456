"""Signals that stop a program, or a run between two steps, once everything has been saved.

PyTorch and Lightning are imported inside of functions: the command line needs this module to start.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from hsakd_pl.errors import counted

if TYPE_CHECKING:
    import pytorch_lightning as pl

STOPPING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what an operating system or a scheduler sends
REQUEUEING = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM's in Lightning and in scripts/slurm, and submitit's
SECONDS_TO_REPEAT = 0.01  # after a signal that arrived where Python drops exceptions
SECONDS_BEFORE_INSISTING = 2  # torchrun repeats to its processes what the terminal has sent them already


class Interrupted(BaseException):
    """A signal ended the program, with the status that a shell expects: 128 + its number.

    Like KeyboardInterrupt it is no Exception: what handles the errors of a reader or a library does not handle it.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} {message}".strip())
        self.status = 128 + signum


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise :class:`Interrupted` wherever the program is, inside of this context.

    Python drops what is raised in a finalizer or a callback of a weak reference, as during imports: there the signal is
    sent once more. Where a library catches the exception, it is raised again at the end of the context.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise Interrupted(signum)

    before = {signum: signal.signal(signum, stop) for signum in STOPPING}
    unraisablehook = sys.unraisablehook

    def repeat_signal(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(SECONDS_TO_REPEAT, os.kill, [os.getpid(), unraisable.exc_value.status - 128]).start()
        else:
            unraisablehook(unraisable)

    sys.unraisablehook = repeat_signal
    try:
        yield
    except Exception as error:
        if received:
            raise Interrupted(received[0]) from error
        raise
    finally:
        sys.unraisablehook = unraisablehook
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        raise Interrupted(received[0])


class Signals:
    """Record signals during training and act on them between two steps; a second Ctrl-C, over 2 s later, stops at once.

    SIGUSR1 and SIGUSR2 are recorded if something handles them: a handler of the user, such as submitit's, or SLURM,
    which is then asked to requeue the job.

    Args:
        checkpoint: file that the run keeps.
        resume_command: command line that resumes the run from there.
    """

    def __init__(self, checkpoint: str, resume_command: str) -> None:
        self.checkpoint = checkpoint
        self.resume_command = resume_command
        self.received = 0
        self.received_at = 0.0
        self.listeners: dict[int, Callable[[int, None], object]] = {}

    def take_over(self, trainer: "pl.Trainer") -> None:
        """Record signals from now on; Lightning has set its own handlers already, and restores the former ones."""
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for signum in REQUEUEING:
            handler = signal.getsignal(signum)
            if callable(handler) and handler != self._note and not _is_lightnings(handler):
                self.listeners[signum] = handler
            elif requeued:
                self.listeners.setdefault(signum, _requeue)
        for watched in (*STOPPING, *self.listeners):
            signal.signal(watched, self._note)

    def obey(self, trainer: "pl.Trainer", saved_step: int) -> None:
        """End the run with :class:`Interrupted`, or hand the job back; the checkpoint is of step ``saved_step``."""
        from pytorch_lightning.utilities import rank_zero_info

        signum = self.received
        self.received = 0
        if trainer.strategy.reduce_boolean_decision(signum in STOPPING, all=False):
            is_whole = saved_step == trainer.global_step
            held = "holds all of it" if is_whole else f"holds the first {counted(saved_step, 'step')}"
            steps = counted(trainer.global_step, "step")
            message = (
                f"in epoch {trainer.current_epoch}, after {steps}: {self.checkpoint} {held}. To "
                f"resume:\n{self.resume_command}"
            )
            if not saved_step:
                message = f"in epoch {trainer.current_epoch}, before its first checkpoint"
            raise Interrupted(signum if signum in STOPPING else signal.SIGTERM, message)
        # Lightning's handler of SIGTERM would communicate with the other processes at any point: end at once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signum and (trainer.is_global_zero or self.listeners[signum] is not _requeue):
            rank_zero_info(f"{signal.Signals(signum).name}: {self.checkpoint} is written, the job is handed back")
            self.listeners[signum](signum, None)

    def obey_at_end(self) -> None:
        """Raise :class:`Interrupted` for a signal that arrived after the last step: the program does nothing more."""
        if self.received in STOPPING:
            raise Interrupted(self.received, f"after the last step: {self.checkpoint} holds the whole run")

    def _note(self, signum: int, frame: FrameType | None) -> None:
        waited = time.monotonic() > self.received_at + SECONDS_BEFORE_INSISTING
        if signum == self.received == signal.SIGINT and waited:
            raise Interrupted(signum)
        if not self.received:
            self.received_at = time.monotonic()
        self.received = signum


def _is_lightnings(handler: Callable[..., object]) -> bool:
    return type(handler).__module__.partition(".")[0] == "pytorch_lightning"


def _requeue(signum: int, frame: None) -> None:
    """Ask SLURM to start this job, or this task of an array, again."""
    from pytorch_lightning.utilities import rank_zero_warn

    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        rank_zero_warn(f"scontrol requeue {job} failed: {done.stderr.strip()}")
