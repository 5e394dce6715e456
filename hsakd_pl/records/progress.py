"""The progress of a run: a bar on a terminal and in a notebook, one line per epoch elsewhere."""

import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, Timer
from rich import get_console
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from hsakd_pl.modules.trainers import callbacks_of
from hsakd_pl.records.watched import Watched, loss_of

SECONDS_BETWEEN_PICTURES = 0.5  # of a bar: one takes about 2 ms
SECONDS_BETWEEN_LINES = 600.0  # inside an epoch; one of ImageNet takes an hour


class Output:
    """Show a picture in the output of a notebook's cell, with the interface of :class:`rich.live.Live`.

    The latter needs ipywidgets, and leaves the text ``Output()`` in notebooks that are saved.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def is_started(self) -> bool:
        return self._handle is not None

    def start(self) -> None:
        from IPython.display import display  # every notebook has it

        if self._handle is None:
            self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def update(self, picture: Table, refresh: bool) -> None:
        self._handle.update(picture)

    def stop(self) -> None:
        self._handle.update({"text/plain": ""}, raw=True)


class Progress(ProgressBar):
    """Show loss, accuracy, best accuracy and its epoch, learning rate, images/s, and the remaining time of the run.

    On a terminal and in a notebook it is a bar, and finished epochs remain as lines. Elsewhere (SLURM, pipes,
    CI) it prints one line per epoch, and within long epochs one every ten minutes. Checkpoints contain the accuracies,
    so that a resumed run continues with them. No step waits for a GPU: the loss within an epoch is the latest one that
    has arrived from there.

    Args:
        lines: print the lines of finished epochs, and those within long ones; otherwise there is only the bar.

    Examples:
        >>> trainer = pl.Trainer(max_epochs=1, callbacks=[Progress(lines=False)])
    """

    def __init__(self, lines: bool = True) -> None:
        super().__init__()
        self.lines = lines
        self.accuracy: float | None = None  # after the last validation
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._enabled = True
        self._due = 0.0  # time of the next picture or line
        self._watched = Watched()
        self._live: Live | Output | None = None
        self._begun: tuple[float, float] | None = None  # time, and part of the fit that was done by then
        self._loss = math.nan
        self._lr = 0.0
        self._validated = False
        # Training of the current epoch: time of the last step, seconds and images
        self._since = 0.0
        self._seconds = 0.0
        self._images = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def state_dict(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        return {"accuracy": self.accuracy, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy = state_dict["accuracy"]
        self.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._begun = None
        self._loss = math.nan
        if trainer.current_epoch == 0:
            self.accuracy = None
            self.best = None
            self.best_epoch = None
        console = get_console()  # the one that Lightning prints its tables with, so that they appear above the bar
        terminal = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
        if self._enabled and console.is_jupyter:
            self._live = Output()
        elif self._enabled and terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
        self._wait()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._live is not None and self._live.is_started:
            self._live.stop()
        self._live = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def on_train_start(self, *_: Any) -> None:
        self.on_train_epoch_start()  # a resumed epoch has no start of its own

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since = time.monotonic()
        self._seconds = 0.0
        self._images = 0
        self._validated = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # after an epoch's last step it is the next one's

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._images += len(batch[1]) * trainer.world_size
        if self._begun is None:  # not before the first step, which compiles and waits for the first images
            self._begun = (now, _part_done(trainer))
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
        accuracy = trainer.callback_metrics.get("val/acc")  # in every process, since reading it synchronises them
        self._since = time.monotonic()
        if accuracy is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.accuracy = float(accuracy)
        self._validated = True
        if self.best is None or self.accuracy > self.best:
            self.best = self.accuracy
            self.best_epoch = trainer.current_epoch + 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss = float(trainer.callback_metrics.get("train/loss", math.nan))
        if self._enabled and self.lines:
            print("  ".join([self._epoch(), *self._numbers(self._validated)]), flush=True)
            self._wait()

    def _evaluated(self, what: str, batches: list[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._is_due():
            self._show(what, batch_idx + 1, batches[dataloader_idx])

    def _is_due(self) -> bool:
        """Return True if it is time for another picture or line, and set the time of the next one."""
        due = self._enabled and time.monotonic() > self._due
        if due:
            self._wait()
        return due

    def _wait(self) -> None:
        self._due = time.monotonic() + (SECONDS_BETWEEN_LINES if self._live is None else SECONDS_BETWEEN_PICTURES)

    def _show(self, what: str, done: int, total: float) -> None:
        """Draw the bar or print a line: ``done`` of ``total`` batches, which may be infinite."""
        count = f"{done:,}/{total:,}" if math.isfinite(total) else f"{done:,}"
        numbers = self._numbers() if self._begun is not None else []
        if self._live is None:
            if self.lines:
                print("  ".join([what, count, *numbers]), flush=True)
            return
        bar = Bar(total, done, width=40) if math.isfinite(total) else Bar(width=40, pulse=True)
        first_line = Table.grid(padding=(0, 1))
        first_line.add_row(what, bar, count)
        picture = Table.grid()
        picture.add_row(first_line)
        picture.add_row(Text("  ".join(numbers)))
        self._live.start()
        self._live.update(picture, refresh=True)

    def _epoch(self) -> str:
        epochs = self.trainer.max_epochs or -1
        epoch = self.trainer.current_epoch + 1
        return f"epoch {epoch:{len(str(epochs))}}/{epochs}" if epochs > 0 else f"epoch {epoch}"

    def _numbers(self, with_accuracy: bool = True) -> list[str]:
        """Return loss, accuracies, learning rate, images/s and remaining time as texts; unknown ones are left out."""
        numbers = []
        if not math.isnan(self._loss):
            digits = "5.2f" if self._loss >= 1 else "5.3f"
            numbers.append(f"loss {self._loss:{digits}}")
        if with_accuracy and self.accuracy is not None:
            numbers.append(f"val {100 * self.accuracy:4.1f} %")
        if self.best is not None:
            numbers.append(f"best {100 * self.best:4.1f} % ({self.best_epoch})")
        numbers.append(f"lr {self._lr:.3g}")
        numbers.append(f"{self._images / max(self._seconds, 1e-9):,.0f} images/s")
        seconds_left = _seconds_left(self.trainer, self._begun)
        if math.isfinite(seconds_left):
            numbers.append(f"{_duration(seconds_left)} left")
        return numbers


def _part_done(trainer: pl.Trainer) -> float:
    """Return the part of a fit that is done, in [0, 1]; by epochs if their length is unknown, 0 if it has no end."""
    steps = trainer.estimated_stepping_batches
    epochs = trainer.max_epochs or -1
    if 0 < steps < math.inf:
        return trainer.global_step / steps
    progress: Any = trainer.fit_loop.epoch_progress.current  # an epoch is processed before it is completed
    return progress.processed / epochs if epochs > 0 else 0.0


def _seconds_left(trainer: pl.Trainer, begun: tuple[float, float] | None) -> float:
    """Estimate the remaining time of a fit from its pace since it had ``begun``; infinite if it is unknown."""
    limits = [timer.time_remaining() for timer in callbacks_of(trainer) if isinstance(timer, Timer)]
    estimates = [limit for limit in limits if limit is not None]
    if begun is not None:
        start, done_at_start = begun
        done = _part_done(trainer)
        if done > done_at_start:
            estimates.append((time.monotonic() - start) / (done - done_at_start) * (1 - done))
    return max(0.0, min(estimates, default=math.inf))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02}"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
