"""Ensembles of heads and transformations, and early exits, in a test: sums over images, batch by batch."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from hsakd_pl.errors import UsageError, require
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.exits import first_sure, head_logits

Views = Literal["identity", "all"]
BINS = 15  # of the calibration error, as in Guo et al., ICML 2017
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the confidence, at which an image leaves
CASCADE = ("class_head", "all_heads", "all_heads_all_views")  # each contains the one before


def ensemble_logits(heads: Tensor) -> dict[str, Tensor]:
    """Average the logits (L + 1, V, B, N) of branches and class head under V views; return logits (B, N) by name.

    Logits are averaged, not probabilities, as in the aggregated inference of self-supervised label augmentation (Lee et
    al., ICML 2020), where a branch classifies view m by its joint logits of transformation m.
    """
    logits = {"class_head": heads[-1, 0], "all_heads": heads[:, 0].mean(0)}
    if heads.shape[1] > 1:
        logits["class_head_all_views"] = heads[-1].mean(0)
        logits["all_heads_all_views"] = heads.mean((0, 1))
    return logits


def scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return sums over images for the logits of A ensembles (A, B, N) and labels (B,).

    ``right`` and ``loss`` (A,); ``gaps`` (A, BINS + 1), probability minus correctness by the bin of the probability,
    with a bin for probability 1.
    """
    probability, predicted = logits.softmax(2).max(2)
    right = (predicted == labels).float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    bins = (probability * BINS).long()[..., None] == torch.arange(BINS + 1, device=labels.device)
    gaps = bins * (probability - right)[..., None]
    return {"right": right.sum(1), "loss": loss.view(len(logits), -1).sum(1), "gaps": gaps.sum(1)}


def exit_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the images that leave at each of K exits (K, B, N), and the right ones among them: (2, thresholds, K)."""
    leaving = first_sure(logits, THRESHOLDS)[..., None] == torch.arange(len(logits), device=labels.device)
    right = leaving & (logits.argmax(2) == labels).T
    return torch.stack([leaving.sum(1), right.sum(1)])


class EnsembleMetrics(Metric):
    """Sum :func:`scores` and :func:`exit_counts` over a test, for a network with branches or several peers.

    ``early_exit`` goes through the branches to the class head, ``cascade`` from the class head to larger ensembles. The
    logits of several peers are averaged. Raises UsageError for networks without branches.
    """

    def __init__(self, networks: Sequence[Network], views: Views) -> None:
        super().__init__()
        require(views in ("identity", "all"), "ensemble", views, "identity or all")
        if not all(len(network.branches) for network in networks):
            raise UsageError(f"ensemble is {views}: it needs a network with branches, leave it out")
        self.transforms = networks[0].transforms
        self.views = self.transforms.count if views == "all" else 1
        heads = 1 + len(networks[0].branches)
        no_logits = torch.zeros(heads, self.views, 0, networks[0].num_classes)
        no_labels = torch.zeros(0, dtype=torch.long)
        for name, zeros in _sums(no_logits, no_labels).items():
            self.add_state(name, zeros, "sum")

    def update(self, outputs: Sequence[NetworkOutput], labels: Tensor) -> None:
        """Add the outputs of each peer for a batch with labels (B,), under at least the views to be summed."""
        views = range(len(outputs[0].logits) // len(labels))
        peer_heads = [head_logits(output, self.transforms, views)[:, : self.views] for output in outputs]
        heads = torch.stack(peer_heads).mean(0)
        for name, batch_sum in _sums(heads, labels).items():
            setattr(self, name, cast(Tensor, self.metric_state[name]) + batch_sum)

    def compute(self) -> dict[str, Any]:
        return self.metric_state


def _sums(heads: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = ensemble_logits(heads)
    cascade = torch.stack([logits[name] for name in CASCADE if name in logits])
    sums = {"images": labels.new_tensor(len(labels))}
    sums |= scores(torch.stack([*logits.values()]), labels)
    sums["early_exit"] = exit_counts(heads[:, 0], labels)
    sums["cascade"] = exit_counts(cascade, labels)
    return sums
