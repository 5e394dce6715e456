"""Numbers that a device computes, brought to the host without waiting for them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor


class Copy(NamedTuple):
    """A scalar () on its way to the host; ``event`` tells when it has arrived, None if it was there at once."""

    step: int
    scalar: Tensor
    event: torch.cuda.Event | None


class Watched:
    """Copy scalars () to the host while a GPU works, and yield each once it has arrived."""

    def __init__(self) -> None:
        self._copies = deque[Copy]()

    def begin(self, step: int, scalar: Tensor | None) -> None:
        """Begin to copy the scalar of a step, if it has one; scalars of a CPU are copied at once."""
        if scalar is None:
            return
        event = torch.cuda.Event() if scalar.is_cuda else None
        copy = scalar.detach().to("cpu", non_blocking=scalar.is_cuda)
        if event is not None:
            event.record()
        self._copies.append(Copy(step, copy, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, float]]:
        """Yield step and value of the scalars that have arrived, in order; with ``wait``, of all."""
        while self._copies:
            step, scalar, event = self._copies[0]
            if event is not None and wait:
                event.synchronize()
            if event is not None and not event.query():
                return
            self._copies.popleft()
            yield step, float(scalar)


class StepLossLogger(pl.Callback):
    """Log ``train/loss_step`` of every n-th step, where n is ``trainer.log_every_n_steps``.

    ``self.log(on_step=True)`` would read it from the device at once, which stalls a GPU at every such step.

    Args:
        also: objects with ``log_metrics`` that receive it in addition to the trainer's loggers.
    """

    def __init__(self, also: Sequence[Any] = ()) -> None:
        self.watched = Watched()
        self.also = also

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning sets it without declaring it
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step
        has_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if has_stepped and trainer.is_global_zero and interval and step % interval == 0:
            self.watched.begin(step - 1, loss_of(trainer, outputs))  # Lightning counts logged steps from 0
        self._log(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer, wait=True)

    def _log(self, trainer: pl.Trainer, wait: bool = False) -> None:
        for step, loss in self.watched.arrived(wait):
            for logger in (*trainer.loggers, *self.also):
                logger.log_metrics({"train/loss_step": loss}, step)


def loss_of(trainer: pl.Trainer, outputs: Any) -> Tensor | None:
    """Return the loss () of a training step, undoing Lightning's division by the number of accumulated batches.

    The step of a user's module may have none.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    return None if loss is None else loss * trainer.accumulate_grad_batches
