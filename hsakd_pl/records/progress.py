"""How far a run is: a bar on a terminal and in a notebook, one line an epoch anywhere else."""

import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, Timer
from rich import get_console
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from hsakd_pl.records.watched import Watched, loss_of

SECONDS_BETWEEN_PICTURES = 0.5  # of a bar: one takes about 2 ms
SECONDS_BETWEEN_LINES = 600.0  # inside an epoch; one of ImageNet takes an hour


class Progress(ProgressBar):
    """Shows loss, accuracy, best accuracy and its epoch, learning rate, images/s, and the time left of the whole run.

    On a terminal and in a notebook a bar moves, and finished epochs stay as lines. Elsewhere (SLURM, pipes, CI) an
    epoch is a line, and a long one has a line every ten minutes. Checkpoints carry the accuracies, so that a resumed
    run goes on with them. No step waits for a GPU: the loss inside an epoch is the last that has arrived from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accuracy: float | None = None  # after the last validation
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._enabled, self._due, self._watched = True, 0.0, Watched()
        self._live: Live | None = None
        self._begun: tuple[float, float] | None = None  # when, and how much of the fit was done by then
        self._loss, self._lr, self._validated = math.nan, 0.0, False
        self._since, self._seconds, self._images = 0.0, 0.0, 0  # of the epoch's training

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best is None else {name: getattr(self, name) for name in ("accuracy", "best", "best_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy, self.best, self.best_epoch = (state_dict[name] for name in ("accuracy", "best", "best_epoch"))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._begun, self._loss = None, math.nan
        if trainer.current_epoch == 0:
            self.accuracy = self.best = self.best_epoch = None
        console = get_console()  # with which Lightning prints its tables, then above the bar
        terminal = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
        if self._enabled and (console.is_jupyter or terminal):
            self._live = Live(
                console=console, auto_refresh=False, transient=True, redirect_stdout=terminal, redirect_stderr=terminal
            )
        self._wait()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._live is not None and self._live.is_started:
            self._live.update("", refresh=True)  # a notebook keeps what it has shown
            self._live.stop()
        self._live = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def on_train_start(self, *_: Any) -> None:
        self.on_train_epoch_start()  # resumed inside an epoch, that has no start

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since, self._seconds, self._images, self._validated = time.monotonic(), 0.0, 0, False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # after an epoch's last step it is the next one's

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now
        self._images += len(batch[1]) * trainer.world_size
        if self._begun is None:  # the first step has compiled, and waited for the first images
            self._begun = now, _part_done(trainer)
        if self._is_due():
            self._watched.begin(trainer.global_step, loss_of(trainer, outputs))
        for _, loss in self._watched.arrived():
            self._loss = loss
            self._show(self._epoch(), batch_idx + 1, trainer.num_training_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluated("validation" if self._begun is None else f"{self._epoch()}, validation", batches, *args[3:])

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._evaluated("test", trainer.num_test_batches, *args[3:])

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._evaluated("predict", trainer.num_predict_batches, *args[3:])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = trainer.callback_metrics.get("val/acc")  # in every process: they sum it up together
        self._since = time.monotonic()
        if accuracy is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.accuracy, self._validated = float(accuracy), True
        if self.best is None or self.accuracy > self.best:
            self.best, self.best_epoch = self.accuracy, trainer.current_epoch + 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss = float(trainer.callback_metrics.get("train/loss", math.nan))
        if self._enabled:
            print("  ".join([self._epoch(), *self._numbers(self._validated)]), flush=True)
            self._wait()

    def _evaluated(self, what: str, batches: list[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._is_due():
            self._show(what, batch_idx + 1, batches[dataloader_idx])

    def _is_due(self) -> bool:
        """Whether it is time for another picture, or another line."""
        due = self._enabled and time.monotonic() > self._due
        if due:
            self._wait()
        return due

    def _wait(self) -> None:
        self._due = time.monotonic() + (SECONDS_BETWEEN_LINES if self._live is None else SECONDS_BETWEEN_PICTURES)

    def _show(self, what: str, done: int, total: float) -> None:
        """Draw the bar, or print a line: so many batches of ``total``, which may be infinite, are done."""
        count = f"{done:,}/{total:,}" if math.isfinite(total) else f"{done:,}"
        numbers = self._numbers() if self._begun is not None else []
        if self._live is None:
            print("  ".join([what, count, *numbers]), flush=True)
            return
        top = Table.grid(padding=(0, 1))
        top.add_row(what, Bar(total, done, width=40) if math.isfinite(total) else Bar(width=40, pulse=True), count)
        self._live.start()
        self._live.update(Group(top, Text("  ".join(numbers))), refresh=True)

    def _epoch(self) -> str:
        epochs, epoch = self.trainer.max_epochs or -1, self.trainer.current_epoch + 1
        return f"epoch {epoch:{len(str(epochs))}}/{epochs}" if epochs > 0 else f"epoch {epoch}"

    def _numbers(self, with_accuracy: bool = True) -> list[str]:
        """Give what is known, of loss, accuracies, learning rate, images/s and time left, as it is shown."""
        numbers = [] if math.isnan(self._loss) else [f"loss {self._loss:{'5.2f' if self._loss >= 1 else '5.3f'}}"]
        if with_accuracy and self.accuracy is not None:
            numbers += [f"val {100 * self.accuracy:4.1f} %"]
        if self.best is not None:
            numbers += [f"best {100 * self.best:4.1f} % ({self.best_epoch})"]
        numbers += [f"lr {self._lr:.3g}", f"{self._images / max(self._seconds, 1e-9):,.0f} images/s"]
        left = _seconds_left(self.trainer, self._begun)
        return [*numbers, f"{_duration(left)} left"] if math.isfinite(left) else numbers


def _part_done(trainer: pl.Trainer) -> float:
    """Give how much of a fit is done, in [0, 1]; by epochs where their length is unknown, 0 if it has no end."""
    steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs or -1
    if 0 < steps < math.inf:
        return trainer.global_step / steps
    counted: Any = trainer.fit_loop.epoch_progress.current  # an epoch is processed before it is completed
    return counted.processed / epochs if epochs > 0 else 0.0


def _seconds_left(trainer: pl.Trainer, begun: tuple[float, float] | None) -> float:
    """Estimate the time to the end of a fit by its pace since it had ``begun``; infinite where nothing is known."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set without being declared
    limits = [timer.time_remaining() for timer in callbacks if isinstance(timer, Timer)]
    left = [limit for limit in limits if limit is not None]
    if begun is not None and (done := _part_done(trainer)) > begun[1]:
        left += [(time.monotonic() - begun[0]) / (done - begun[1]) * (1 - done)]
    return max(0.0, min(left, default=math.inf))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02}"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
