"""Numbers that a device computes, brought to the host without making it wait for them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class Watched:
    """Copies scalars () to the host beside the work of a GPU, and gives each once it has arrived."""

    def __init__(self) -> None:
        self._coming = deque[tuple[int, Tensor, torch.cuda.Event | None]]()

    def begin(self, step: int, scalar: Tensor | None) -> None:
        """Begin to copy the scalar of a step, where it has one; only a GPU's is copied later than now."""
        if scalar is None:
            return
        copied = torch.cuda.Event() if scalar.is_cuda else None
        copy = scalar.detach().to("cpu", non_blocking=scalar.is_cuda)
        if copied is not None:
            copied.record()
        self._coming.append((step, copy, copied))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, float]]:
        """Give step and value of what has arrived, in order; with ``wait``, of all that was begun."""
        while self._coming:
            step, copy, copied = self._coming[0]
            if copied is not None and wait:
                copied.synchronize()
            if copied is not None and not copied.query():
                return
            self._coming.popleft()
            yield step, float(copy)


class StepLossLogger(pl.Callback):
    """Logs ``train/loss_step`` of every n-th step, as ``trainer.log_every_n_steps`` says.

    ``self.log(on_step=True)`` would read it from the device at once, which stalls a GPU at every such step.

    Args:
        also: what has ``log_metrics`` and hears of it beside the trainer's loggers.
    """

    def __init__(self, also: Sequence[Any] = ()) -> None:
        self.watched, self.also = Watched(), also

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning sets it without declaring it
        every, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if stepped and trainer.is_global_zero and every and step % every == 0:
            self.watched.begin(step - 1, loss_of(trainer, outputs))  # Lightning counts logged steps from 0
        self._log(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer, wait=True)

    def _log(self, trainer: pl.Trainer, wait: bool = False) -> None:
        for step, loss in self.watched.arrived(wait):
            for logger in (*trainer.loggers, *self.also):
                logger.log_metrics({"train/loss_step": loss}, step)


def loss_of(trainer: pl.Trainer, outputs: Any) -> Tensor | None:
    """Give the loss () of a training step, which Lightning divides by the number of accumulated batches.

    A step of the user's own may have none.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    return None if loss is None else loss * trainer.accumulate_grad_batches
