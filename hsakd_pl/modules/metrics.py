"""What an evaluation measures, with torchmetrics."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hsakd_pl.modules.means import Mean
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.ops import cross_entropy

Metrics = dict[str, Metric]
TOP = 5  # the second accuracy of the paper's ImageNet tables


class Accuracy(MulticlassAccuracy):
    """torchmetrics' over all samples, that takes the empty batch of a device without images."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions (B, N) for labels (B,)."""
        if len(target):
            super().update(preds, target)


def accuracies(name: str, num_classes: int) -> Metrics:
    """Make top-1 and, of more than five classes, top-5 accuracy over all samples, in [0, 1]."""
    tops = {name: 1, f"{name}_top{TOP}": TOP} if num_classes > TOP else {name: 1}
    return {each: Accuracy(num_classes, top_k=top, average="micro", validate_args=False) for each, top in tops.items()}


def head_metrics(num_classes: int, prefix: str = "") -> Metrics:
    """Make cross-entropy and accuracies of a class head on untransformed images: the result of a network."""
    return {f"{prefix}loss": Mean(), **accuracies(f"{prefix}acc", num_classes)}


def branch_metrics(network: Network, prefix: str = "") -> list[tuple[Metrics, Metrics]]:
    """Make, for each branch over all transformations, accuracies on joint labels and on classes from joint logits."""
    names = [f"{prefix}branch{number}" for number in range(1, len(network.branches) + 1)]
    return [
        (accuracies(f"{name}_joint", network.num_joint_classes), accuracies(f"{name}_class", network.num_classes))
        for name in names
    ]


class Evaluation(nn.Module):
    """Metrics of one network, or of several peers: pooled over them, which is their mean, and of each alone."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        num_classes = networks[0].num_classes
        prefixes = [f"peer{peer}_" for peer in range(1, len(networks) + 1)] if len(networks) > 1 else [""]
        self.transforms = [network.transforms for network in networks]
        self.pooled = head_metrics(num_classes)
        self.heads = [head_metrics(num_classes, prefix) for prefix in prefixes if prefix]
        self.branches = [branch_metrics(*of) for of in zip(networks, prefixes, strict=True)]
        parts = [self.pooled, *self.heads, *(part for peer in self.branches for pair in peer for part in pair)]
        self.registered = nn.ModuleList(metric for part in parts for metric in part.values())

    def add_head(self, peer: int, logits: Tensor, labels: Tensor) -> Metrics:
        """Add a batch of untransformed images (logits (B, N), labels (B,)) and return the metrics that it changed."""
        changed: Metrics = {}
        loss_value = cross_entropy(logits, labels)
        for head in (self.pooled, *self.heads[peer : peer + 1]):
            loss, *tops = head.values()
            loss.update(loss_value, len(labels))
            for metric in tops:
                metric.update(logits, labels)
            changed |= head
        return changed

    def add_branches(self, peer: int, output: NetworkOutput, labels: Tensor) -> Metrics:
        """Add what the branches make of all M * B rows of a batch and return the metrics that it changed."""
        changed: Metrics = {}
        transforms = self.transforms[peer]
        targets = transforms.joint_labels(labels), transforms.class_labels(labels)
        for joint_logits, parts in zip(output.joint_logits, self.branches[peer], strict=True):
            predictions = joint_logits, transforms.class_logits(joint_logits)
            for part, predicted, target in zip(parts, predictions, targets, strict=True):
                for metric in part.values():
                    metric.update(predicted, target)
                changed |= part
        return changed
