"""What an evaluation measures, with torchmetrics."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import NUM_ROTATIONS, class_logits, joint_labels

Metrics = dict[str, Metric]


class Mean(Metric):
    """Mean over images, of scalars () that are each the mean over a batch of so many ``images``.

    torchmetrics' own looks for NaN at every update, which stalls a GPU, and leaves it out, or, told not to look,
    forgets the numbers of images; and it takes nine kernels for two. Here NaN stays to be seen.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), "sum")

    def update(self, value: Tensor, images: int) -> None:
        self.total = torch.add(self.total, value.detach(), alpha=images)
        self.images = self.images + images

    def compute(self) -> Tensor:
        return self.total / self.images


def accuracies(name: str, num_classes: int) -> Metrics:
    """Top-1 and top-5 accuracy over all samples, in [0, 1], under ``name`` and ``name_top5``."""
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False)
    return {name: MulticlassAccuracy(num_classes, average="micro", validate_args=False), f"{name}_top5": top5}


def head_metrics(num_classes: int, prefix: str = "") -> Metrics:
    """Cross-entropy and accuracies of a class head on unrotated images: the result of a network."""
    return {f"{prefix}loss": Mean(), **accuracies(f"{prefix}acc", num_classes)}


def branch_metrics(num_classes: int, branches: int, prefix: str = "") -> list[tuple[Metrics, Metrics]]:
    """Of each branch over all rotations: joint labels among 4N, and classes from summed joint logits among N."""
    names = [f"{prefix}branch{number}" for number in range(1, branches + 1)]
    return [
        (accuracies(f"{name}_joint", NUM_ROTATIONS * num_classes), accuracies(f"{name}_class", num_classes))
        for name in names
    ]


class Evaluation(nn.Module):
    """Metrics of one network, or of several peers: pooled over them, which is their mean, and of each alone.

    ``branches``: how many each peer has.
    """

    def __init__(self, num_classes: int, branches: Sequence[int]) -> None:
        super().__init__()
        prefixes = [f"peer{peer}_" for peer in range(1, len(branches) + 1)] if len(branches) > 1 else [""]
        self.pooled = head_metrics(num_classes)
        self.heads = [head_metrics(num_classes, prefix) for prefix in prefixes if prefix]
        self.branches = [branch_metrics(num_classes, *of) for of in zip(branches, prefixes, strict=True)]
        parts = [self.pooled, *self.heads, *(part for peer in self.branches for pair in peer for part in pair)]
        self.registered = nn.ModuleList(metric for part in parts for metric in part.values())

    def add(self, peer: int, output: NetworkOutput, labels: Tensor) -> Metrics:
        """Add a batch and return the metrics that it changed.

        ``output`` is for B images, or for the 4B rows of :func:`hsakd_pl.ops.rotate`: then the branches are measured.
        """
        changed: Metrics = {}
        logits = output.logits[: len(labels)]
        cross_entropy = F.cross_entropy(logits, labels)
        for head in (self.pooled, *self.heads[peer : peer + 1]):
            loss, *top = head.values()
            loss.update(cross_entropy, len(labels))
            for metric in top:
                metric.update(logits, labels)
            changed |= head
        if len(output.logits) > len(labels):
            targets = joint_labels(labels), labels.repeat(NUM_ROTATIONS)
            for joint_logits, parts in zip(output.joint_logits, self.branches[peer], strict=True):
                predictions = joint_logits, class_logits(joint_logits)
                for part, predicted, target in zip(parts, predictions, targets, strict=True):
                    for metric in part.values():
                        metric.update(predicted, target)
                    changed |= part
        return changed
