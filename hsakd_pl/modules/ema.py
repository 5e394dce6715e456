"""Average the weights of a run exponentially (EMA), so that the average is right from the first step on."""

from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.frozen import frozen_in

# Lightning 2.6 brought it
WeightAveraging: Any = getattr(callbacks, "WeightAveraging", None)
HALF_PRECISION = ("bf16-true", "16-true")
WARMUP = 10  # of the steps so far, the part that the average covers while the decay grows: TensorFlow's formula


def decay_at(updates: Any, decay: float) -> Any:
    """Return the decay of an update after a number of others: it grows until it is ``decay``.

    .. math:: \\min\\left( \\text{decay}, \\frac{1 + n}{10 + n} \\right)

    The average then covers about the last ninth of all steps (TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``), so that the first weights do not remain in that of a short run.

    Args:
        updates: number n of updates before.
        decay: largest decay.

    Examples:
        >>> [round(decay_at(n, 0.99), 3) for n in (0, 10, 100, 10_000)]
        [0.1, 0.55, 0.918, 0.99]
    """
    grown = (1 + updates) / (WARMUP + updates)
    return grown.clamp(max=decay) if isinstance(grown, Tensor) else min(decay, grown)


def averaged(average: Tensor, current: Tensor, updates: Any, decay: float) -> Tensor:
    """Return the average of a parameter after an update with its current value.

    Args:
        average: average before.
        current: current value.
        updates: number of updates before.
        decay: largest decay.
    """
    if not (average.is_floating_point() or average.is_complex()):
        return current  # a counter, for example, is copied, since integers cannot be averaged
    weight = 1 - decay_at(updates, decay)
    return average.lerp(current, weight.to(average.dtype) if isinstance(weight, Tensor) else weight)


class EMA(WeightAveraging or pl.Callback):  # type: ignore[misc]
    """Validate, save and export an exponential moving average of the weights, instead of the last ones.

    Based on Lightning's ``WeightAveraging``, with three differences from its ``EMAWeightAveraging``: the decay grows
    with the number of steps (:func:`decay_at`); the buffers, such as the statistics of batch norms, which are moving
    averages themselves, their counters, and what a method keeps, are those of the training; and the log says which
    weights are where. ``best.ckpt`` and ``last.ckpt`` hold the average, from which ``test``, ``predict`` and ``export``
    read it, and under ``last.ckpt#current_model_state`` the weights that are trained. A resumed run continues both
    exactly.

    Source: Lightning's ``WeightAveraging``; TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    Args:
        decay: largest decay, at least 0 and below 1.

    Raises:
        UsageError: for a decay that is not at least 0 and below 1, and for versions of Lightning before 2.6.

    Examples:
        >>> import pytorch_lightning as pl
        >>> average = EMA(decay=0.99)
        >>> trainer = pl.Trainer(max_epochs=5, callbacks=[average], logger=False)
        >>> trainer.fit(BaselineModule("resnet8", num_classes=10), DigitsDataModule())  # doctest: +SKIP
    """

    changes_results = True  # and so belongs to the protocol of a run

    def __init__(self, decay: float = 0.999) -> None:
        if WeightAveraging is None:
            raise UsageError("EMA needs pytorch_lightning 2.6 or newer: update it")
        require(0 <= decay < 1, "decay", decay, "at least 0 and below 1")
        super().__init__(use_buffers=False, avg_fn=partial(averaged, decay=decay))
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module without its teachers; raises UsageError for weights in half precision."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if str(trainer.precision) in HALF_PRECISION:
            raise UsageError(
                f"trainer.precision is {trainer.precision}, whose weights are too coarse for an average: choose "
                f"{str(trainer.precision).replace('true', 'mixed')}, or leave EMA out"
            )
        copied: Any = self._average_model.module
        for name in [name for name, value in vars(copied).items() if any(True for _ in frozen_in(value))]:
            setattr(copied, name, [])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the average on the device of the weights, where Lightning leaves it on the CPU."""
        self._average_model.to(trainer.strategy.root_device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank_zero_info(
            f"EMA: validations, best.ckpt, last.ckpt, tests and exports use the average of the weights, with a decay "
            f"that grows to {self.decay:g}; FILE#current_model_state names the weights of the last step"
        )
