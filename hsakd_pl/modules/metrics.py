"""The metrics of an evaluation."""

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn as nn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hsakd_pl.modules.means import Mean
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.ops import cross_entropy

Metrics = dict[str, Metric]
TOP_K = 5  # as in the paper's ImageNet tables


class Accuracy(MulticlassAccuracy):
    """torchmetrics' accuracy over all samples, which also accepts the empty batch of a device without images."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions (B, N) for labels (B,)."""
        if len(target):
            super().update(preds, target)


def accuracies(name: str, num_classes: int) -> Metrics:
    """Return metrics of the top-1 and, for more than five classes, top-5 accuracy over all samples, in [0, 1]."""
    ranks = {name: 1}
    if num_classes > TOP_K:
        ranks[f"{name}_top{TOP_K}"] = TOP_K
    return {
        accuracy: Accuracy(num_classes, top_k=rank, average="micro", validate_args=False)
        for accuracy, rank in ranks.items()
    }


def head_metrics(num_classes: int, prefix: str = "") -> Metrics:
    """Return metrics of the cross-entropy and the accuracies of a class head on untransformed images."""
    metrics: Metrics = {f"{prefix}loss": Mean()}
    return metrics | accuracies(f"{prefix}acc", num_classes)


def branch_metrics(network: Network, prefix: str = "") -> list[tuple[Metrics, Metrics]]:
    """Return, per branch, accuracies on joint labels and on classes from joint logits, over all transformations.

    The class is that with the largest sum of its joint logits (``transforms.class_logits``), as in the published
    evaluation. Ensembles and early exits read the joint labels of the transformation that an image shows instead
    (``transforms.view_logits``), which is right more often.
    """
    names = [f"{prefix}branch{number}" for number in range(1, len(network.branches) + 1)]
    return [
        (accuracies(f"{name}_joint", network.num_joint_classes), accuracies(f"{name}_class", network.num_classes))
        for name in names
    ]


class Evaluation(nn.Module):
    """Metrics of one network, or of several peers: the mean over the peers, of each peer, and of their ensemble."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        num_classes = networks[0].num_classes
        self.transforms = [network.transforms for network in networks]
        self.pooled = head_metrics(num_classes)
        self.heads: list[Metrics] = []
        self.branches: list[list[tuple[Metrics, Metrics]]] = []
        for peer, network in enumerate(networks, 1):
            prefix = f"peer{peer}_" if len(networks) > 1 else ""
            if prefix:
                self.heads.append(head_metrics(num_classes, prefix))
            self.branches.append(branch_metrics(network, prefix))
        self.ensemble = accuracies("ensemble_acc", num_classes) if self.heads else {}
        self.registered = nn.ModuleList()
        for head in (self.pooled, *self.heads, self.ensemble):
            self.registered.extend(head.values())
        for joint_metrics, class_metrics in chain.from_iterable(self.branches):
            self.registered.extend([*joint_metrics.values(), *class_metrics.values()])

    def add_head(self, peer: int, logits: Tensor, labels: Tensor) -> Metrics:
        """Add the logits (B, N) of untransformed images with labels (B,), and return the updated metrics."""
        heads = [self.pooled]
        if self.heads:
            heads.append(self.heads[peer])
        changed: Metrics = {}
        loss = cross_entropy(logits, labels)
        for head in heads:
            for metric in head.values():
                if isinstance(metric, Mean):
                    metric.update(loss, len(labels))
                else:
                    metric.update(logits, labels)
            changed |= head
        return changed

    def add_ensemble(self, logits: Sequence[Tensor], labels: Tensor) -> Metrics:
        """Add the mean of the peers' logits (B, N) of images with labels (B,), and return the updated metrics."""
        if self.ensemble:
            mean = torch.stack([*logits]).mean(0)
            for metric in self.ensemble.values():
                metric.update(mean, labels)
        return self.ensemble

    def add_branches(self, peer: int, output: NetworkOutput, labels: Tensor) -> Metrics:
        """Add the outputs of the branches for all M * B rows of a batch, and return the updated metrics."""
        changed: Metrics = {}
        transforms = self.transforms[peer]
        joint_labels = transforms.joint_labels(labels)
        class_labels = transforms.class_labels(labels)
        for joint_logits, metrics in zip(output.joint_logits, self.branches[peer], strict=True):
            joint_metrics, class_metrics = metrics
            for metric in joint_metrics.values():
                metric.update(joint_logits, joint_labels)
            class_logits = transforms.class_logits(joint_logits)
            for metric in class_metrics.values():
                metric.update(class_logits, class_labels)
            changed |= joint_metrics | class_metrics
        return changed
