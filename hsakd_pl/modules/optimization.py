"""SGD and its learning rates, as the published recipes have them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR

OptimizerMaker = Callable[[Iterable[Tensor]], Optimizer]
Scheduler = Callable[[Optimizer], LRScheduler]


def make_sgd(module: pl.LightningModule, parameters: Iterable[Tensor], lr: float, fused: bool, **options: Any) -> SGD:
    """Make SGD; ``fused``, with one kernel for all parameters, unless gradients are clipped or the device has none.

    Lightning cannot clip for a fused optimizer in mixed precision, since that unscales gradients by itself.
    """
    clipped = module._trainer is not None and bool(module._trainer.gradient_clip_val)
    return SGD(parameters, lr, fused=fused and module.device.type in ("cpu", "cuda") and not clipped, **options)


def one_schedule(optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """Let a schedule step once an epoch, on ``val/loss`` if it watches a metric and names no other."""
    monitor = getattr(schedule, "monitor", "val/loss")
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch", "monitor": monitor}}


def with_warmup(optimizer: Optimizer, milestones: Sequence[int], epochs: int, trainer: pl.Trainer) -> Any:
    """Warm up linearly in steps over ``epochs``, then take a tenth of the rate at each milestone after it."""
    after = MultiStepLR(optimizer, [epochs + epoch for epoch in milestones], gamma=0.1)
    steps = max(1, round(epochs * trainer.estimated_stepping_batches / (trainer.max_epochs or 1)))
    warmup = LinearLR(optimizer, 1 / steps, total_iters=max(1, steps - 1))
    return [optimizer], [{"scheduler": warmup, "interval": "step"}, {"scheduler": after, "interval": "epoch"}]
