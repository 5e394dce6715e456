"""Means over the images of an epoch, which survive an interruption."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Compute the mean of per-batch means, weighted by batch size.

    ``torchmetrics.MeanMetric`` checks for NaN at every update, which stalls a GPU, and drops it, or without the check
    ignores the weights; and it takes nine kernels instead of two. Here NaN is kept; an empty batch has no mean.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), "sum")

    def update(self, value: Tensor, images: int) -> None:
        """Add the mean () of a batch; ``images`` is its size."""
        mean = value.detach() if images else torch.zeros_like(value)
        self.total = torch.add(self.total, mean, alpha=images)  # of the values' dtype, which must not differ by device
        self.images = self.images + images

    def compute(self) -> Tensor:
        return self.total / self.images


class EpochMeans(dict[str, Mean]):
    """The mean of each loss term in a fit's current epoch, by name."""

    def add(self, values: Mapping[str, Tensor], images: int, log: Callable[..., None]) -> None:
        """Add the terms () of a batch; each is logged once per epoch, since ``log`` takes 1.5 ms per step."""
        for name, value in values.items():
            mean = self.setdefault(name, Mean())
            if not mean.update_called:
                log(f"train/{name}", mean.to(value.device), on_step=False, on_epoch=True, metric_attribute=name)
            mean.update(value, images)

    def saved(self, gather: Callable[[Tensor], Any]) -> dict[str, list[Tensor]]:
        """Return the sum and the number of images of each term, as tensors (devices,)."""
        return {name: [gather(mean.total).view(-1), gather(mean.images).view(-1)] for name, mean in self.items()}

    def restore(self, saved: Mapping[str, list[Tensor]], rank: int, devices: int) -> None:
        """Restore what :meth:`saved` returned; if the number of devices differs, the first device takes all."""
        for name, (totals, images) in saved.items():
            mean = Mean()
            if len(totals) == devices:
                mean.total = totals[rank]
                mean.images = images[rank]
            elif rank == 0:
                mean.total = totals.sum()
                mean.images = images.sum()
            self[name] = mean
