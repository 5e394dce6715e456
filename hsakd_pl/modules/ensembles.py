"""What ensembles of heads and transformations, and early exits, make of a test: counts, batch by batch."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from hsakd_pl.errors import UsageError, require
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.exits import first_sure, head_logits

Views = Literal["identity", "all"]
BINS = 15  # of the calibration error, as in Guo et al., ICML 2017
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the confidence, at which an image leaves
CASCADE = ("class_head", "all_heads", "all_heads_all_views")  # of which each contains the one before


class Scores(Metric):
    """Accuracy and calibration error in [0, 1], and negative log-likelihood, of several answers to the same images."""

    images: Tensor
    right: Tensor
    loss: Tensor
    gaps: Tensor

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.add_state("images", torch.zeros((), dtype=torch.long), "sum")
        self.add_state("right", torch.zeros(answers, dtype=torch.long), "sum")
        self.add_state("loss", torch.zeros(answers), "sum")
        self.add_state("gaps", torch.zeros(answers, BINS + 1), "sum")  # a probability of 1 has a bin of its own

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (answers, B, N) for labels (B,)."""
        probability, predicted = logits.softmax(2).max(2)
        right = predicted == labels
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        bins = (probability * BINS).long()[..., None] == torch.arange(BINS + 1, device=labels.device)
        self.images = self.images + len(labels)
        self.right = self.right + right.sum(1)
        self.loss = self.loss + loss.unflatten(0, (len(logits), -1)).sum(1)
        self.gaps = self.gaps + (bins * (probability - right.float())[..., None]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        sums = {"acc": self.right, "nll": self.loss, "ece": self.gaps.abs().sum(1)}
        return {name: value / self.images for name, value in sums.items()}


class ExitCounts(Metric):
    """How many images leave at each of K exits, and how many of those are right, both (thresholds, K)."""

    left: Tensor
    right: Tensor

    def __init__(self, exits: int) -> None:
        super().__init__()
        for name in ("left", "right"):
            self.add_state(name, torch.zeros(len(THRESHOLDS), exits, dtype=torch.long), "sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the logits (K, B, N) of all exits for labels (B,)."""
        leaving = first_sure(logits, THRESHOLDS)[..., None] == torch.arange(len(logits), device=labels.device)
        self.left = self.left + leaving.sum(1)
        self.right = self.right + (leaving & (logits.argmax(2) == labels).T).sum(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right


def ensembles(heads: Tensor) -> dict[str, Tensor]:
    """Average the logits (L + 1, V, B, N) of branches and class head, seen under V views, to logits (B, N) by name.

    Logits are averaged, not probabilities, as in the aggregated inference of self-supervised label augmentation (Lee et
    al., ICML 2020), where a branch says of view m what it gives the joint labels of transformation m.
    """
    found = {"class_head": heads[-1, 0], "all_heads": heads[:, 0].mean(0)}
    if heads.shape[1] > 1:
        found |= {"class_head_all_views": heads[-1].mean(0), "all_heads_all_views": heads.mean((0, 1))}
    return found


class EnsembleMetrics(nn.Module):
    """Scores of the ensembles, and counts of two kinds of early exits, of a network with branches or of several peers.

    Raises UsageError for a network without. Of several peers each answer is the mean of theirs. ``exits``: through the
    branches to the class head, and ``cascade``: from the class head to ever larger ensembles.
    """

    def __init__(self, networks: Sequence[Network], views: Views) -> None:
        super().__init__()
        require(views in ("identity", "all"), "ensemble", views, "identity or all")
        if not all(len(network.branches) for network in networks):
            raise UsageError(f"ensemble is {views}: it needs a network with branches, leave it out")
        self.transforms = networks[0].transforms
        self.views = self.transforms.count if views == "all" else 1
        self.names = list(ensembles(torch.empty(1, self.views, 0, 1)))
        self.scores = Scores(len(self.names))
        self.exits = ExitCounts(1 + len(networks[0].branches))
        self.cascade = ExitCounts(sum(name in CASCADE for name in self.names))

    def add(self, outputs: Sequence[NetworkOutput], labels: Tensor) -> None:
        """Add what each peer made of a batch with labels (B,), under these views at least."""
        seen = range(len(outputs[0].logits) // len(labels))
        heads = torch.stack([head_logits(each, self.transforms, seen)[:, : self.views] for each in outputs]).mean(0)
        found = ensembles(heads)
        self.scores.update(torch.stack(list(found.values())), labels)
        self.exits.update(heads[:, 0], labels)
        self.cascade.update(torch.stack([logits for name, logits in found.items() if name in CASCADE]), labels)

    def compute(self) -> dict[str, Any]:
        """Give what :class:`Scores` and both :class:`ExitCounts` hold of all devices; all have to call it."""
        parts = {"scores": self.scores, "exits": self.exits, "cascade": self.cascade}
        return {name: metric.compute() for name, metric in parts.items()}

    def reset(self) -> None:
        """Forget an earlier test."""
        for metric in (self.scores, self.exits, self.cascade):
            metric.reset()
