"""What an evaluation measures, as torchmetrics."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import NUM_ROTATIONS, class_logits, joint_labels


def accuracies(name: str, num_classes: int) -> dict[str, Metric]:
    """Top-1 and top-5 accuracy over all samples, in [0, 1], under ``name`` and ``name_top5``."""
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False)
    return {name: MulticlassAccuracy(num_classes, average="micro", validate_args=False), f"{name}_top5": top5}


class ClassMetrics(nn.ModuleDict):
    """Class head on unrotated images: the result of a network. ``loss`` is its cross-entropy."""

    def __init__(self, num_classes: int, prefix: str = "") -> None:
        super().__init__({f"{prefix}loss": MeanMetric(), **accuracies(f"{prefix}acc", num_classes)})

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: ``logits`` (B, N), ``labels`` (B,)."""
        loss, *top = self.values()
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        for metric in top:
            metric.update(logits, labels)


class BranchMetrics(nn.ModuleDict):
    """Each branch over all rotations: joint labels among 4N, and classes from summed joint logits among N."""

    def __init__(self, num_classes: int, num_branches: int, prefix: str = "") -> None:
        super().__init__()
        for branch in range(1, num_branches + 1):
            self.update(accuracies(f"{prefix}branch{branch}_joint", NUM_ROTATIONS * num_classes))
            self.update(accuracies(f"{prefix}branch{branch}_class", num_classes))

    def add(self, output: NetworkOutput, labels: Tensor) -> None:
        """Add a batch: ``output`` for the 4B rows of :func:`hsakd_pl.ops.rotate`, ``labels`` (B,)."""
        metrics = iter(self.values())
        for joint_logits in output.joint_logits:
            pairs = (joint_logits, joint_labels(labels)), (class_logits(joint_logits), labels.repeat(NUM_ROTATIONS))
            for logits, targets in pairs:
                for _ in ("top-1", "top-5"):
                    next(metrics).update(logits, targets)
