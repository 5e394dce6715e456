"""Mutual distillation: peers that learn together, without a teacher (Sec. 4.6, online)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_own_weights
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.options import BranchOptions
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.ops import Transforms, cross_entropy, full_precision, joint_cross_entropy, joint_kd_loss, kd_loss, total
from hsakd_pl.signatures import Unpack


def other_logits(peers: Sequence[Tensor], labels: Tensor) -> list[list[Tensor]]:
    """Return the logits of all other peers as the targets of each peer (DML; Zhang et al., CVPR 2018).

    Args:
        peers: logits (..., rows, K) of each of P peers.
        labels: classes (rows,), not used.

    Examples:
        >>> first, second, third = torch.eye(3)
        >>> other_logits([first, second, third], torch.zeros(3))[1] == [first, third]
        True
    """
    return [[other for other in peers if other is not peer] for peer in peers]


@full_precision
def mean_logits(peers: Sequence[Tensor], labels: Tensor) -> list[list[Tensor]]:
    """Return the mean of the peers' logits, their ensemble, as the only target of each peer.

    Args:
        peers: logits (..., rows, K) of each of P peers.
        labels: classes (rows,), not used.

    Examples:
        >>> mean_logits([torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 5.0]])], torch.tensor([0]))[0]
        [tensor([[2., 4.]])]
    """
    return [[torch.stack([*peers]).mean(0)]] * len(peers)


@full_precision
def min_logits(peers: Sequence[Tensor], labels: Tensor) -> list[list[Tensor]]:
    r"""Return the smallest logit of each class, relative to the true one, as the only target of each peer.

    .. math:: t_i = \min_p (z_{p, i} - z_{p, y})

    for peers p and the true class y, whose own target is 0: of all peers, the one that is surest of the true class
    decides about each other class. MinLogit of KDCL (Guo et al., CVPR 2020). Its temperature and weight were not found
    in a public source, nor code of its authors. A re-implementation of the ensemble without MinLogit
    (shaoeric/Online-Knowledge-Distillation-via-Collaborative-Learning @ 0774dc1) has T = 4 and weights of 0.5 for CE
    and KD, and says that its values are not all the paper's. The bench has those of HSAKD: T = 3, and a weight of 1.

    Args:
        peers: logits z (..., rows, K) of each of P peers.
        labels: true classes y (rows,).

    Examples:
        >>> min_logits([torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[3.0, 4.0, 3.0]])], torch.tensor([0]))[0]
        [tensor([[ 0.,  1., -1.]])]
    """
    logits = torch.stack([*peers])
    true_classes = labels.expand(logits.shape[:-1])[..., None]
    return [[(logits - logits.gather(-1, true_classes)).amin(0)]] * len(peers)


# The targets of KD for each peer, by the name of the option ``target``
TARGETS: dict[str, Callable[[Sequence[Tensor], Tensor], list[list[Tensor]]]] = {
    "others": other_logits,
    "mean": mean_logits,
    "min": min_logits,
}


class MutualModule(HSAKDModule):
    """Minimise, for each peer, the teacher's loss plus KD of class and joint logits towards the other peers.

    The targets of KD are detached; with more than two peers, KD is averaged over the others (deep mutual learning).
    ``val/acc`` is the mean over the peers; the accuracies of each peer and of the ensemble, which averages their
    logits, are logged too. With both joint weights at 0 the branches are left out, and images are not transformed.

    Source: Yang et al., IJCAI 2021, extended in TNNLS 2022; Zhang et al., CVPR 2018.

    Args:
        networks: two or more names or networks, with equal classes, branches and transforms.
        weights: weight file of all peers, or ``pretrained`` for the weights that timm publishes.
        num_classes: number of classes of networks given by name.
        transforms: transformations of networks given by name: an object, ``rotations``, ``flips``, ``colours``, an
            import path, or a product of these.
        channels: number of channels of the images that networks given by name, or any other ``nn.Module``, take.
        target: target of both KD terms: ``others``, each of the other peers in turn; ``mean``, the mean of all peers'
            logits; or ``min``, the smallest logits relative to that of the true class (KDCL; Guo et al., CVPR 2020).
        temperature: temperature of both KD terms; T = 3: Sec. 4.1 of the paper.
        ce_weight: weight of the class heads' cross-entropy.
        joint_ce_weight: weight of the branches' cross-entropy.
        kd_weight: weight of the class heads' KD.
        joint_kd_weight: weight of the branches' KD.
        new_head: keep the last layers of the class head and of the branches freshly initialised, for ``weights`` of
            other classes.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: for less than two peers, for peers of unequal classes, branches, transforms or channels, for an
            unknown ``target``, and for a temperature of 0 or less.

    Examples:
        >>> module = MutualModule(["resnet8", "resnet14"], num_classes=10)
        >>> batch = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_joint_ce', 'loss_joint_kd']
    """

    def __init__(
        self,
        networks: Sequence[str | nn.Module],
        weights: str | None = None,
        num_classes: int = 100,
        transforms: str | Transforms | None = None,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        joint_ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        joint_kd_weight: float = 1.0,
        new_head: bool = False,
        target: str = "others",
        channels: int = 3,
        **options: Unpack[BranchOptions],
    ) -> None:
        branches = joint_ce_weight > 0 or joint_kd_weight > 0
        peers = [build_network(network, num_classes, branches, transforms, channels) for network in networks]
        require_equal_peers(peers)
        require_own_weights(peers, "networks: the peers")
        require(target in TARGETS, "target", target, f"one of {', '.join(TARGETS)}")
        require(0 < temperature < math.inf, "temperature", temperature, "above 0")
        weight_files = load_initial("weights", weights, [*peers], new_head)
        super().__init__(peers, **options)
        self.weight_files = weight_files
        self.set_loss_weights(loss_ce=ce_weight, loss_kd=kd_weight)
        if branches:
            self.set_loss_weights(loss_joint_ce=joint_ce_weight, loss_joint_kd=joint_kd_weight)
        self.temperature = temperature
        self.target = target
        self.views = peers[0].transforms.count if branches else 1

    @property
    def uses_unlabelled(self) -> bool:  # type: ignore[override]  # an attribute of the base class
        """True without branches, whose cross-entropy needs labels, and targets that do not depend on labels."""
        return not self.network.branches and self.target != "min"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        inputs = self.network.transforms(images) if self.network.branches else images
        outputs = [outputs_of(cast(Network, peer), inputs) for peer in self.networks]
        return self.terms(outputs, outputs, labels)

    def terms(  # type: ignore[override]  # lists: one output per peer
        self, student: list[NetworkOutput], teacher: list[NetworkOutput], labels: Tensor
    ) -> dict[str, Tensor]:
        class_labels = labels.repeat(len(student[0].logits) // len(labels))
        class_teachers = [peer.logits for peer in teacher]
        kd = self._kd(kd_loss, [peer.logits for peer in student], class_teachers, class_labels)
        ce = total(cross_entropy(peer.logits[: len(labels)], labels) for peer in student)
        terms = {"loss_ce": ce, "loss_kd": kd}
        if student[0].joint_logits:
            joint_labels = self.network.transforms.joint_labels(labels)
            joint = [peer.joint_logits for peer in student]
            joint_teachers = [torch.stack([*peer.joint_logits]) for peer in teacher]
            joint_kd = self._kd(joint_kd_loss, joint, joint_teachers, joint_labels)
            joint_ce = total(joint_cross_entropy(logits, joint_labels) for logits in joint)
            terms |= {"loss_joint_ce": joint_ce, "loss_joint_kd": joint_kd}
        return terms

    def _kd(self, loss: Callable[..., Tensor], peers: Sequence[Any], teachers: list[Tensor], labels: Tensor) -> Tensor:
        """Return the sum over the peers of the mean loss towards their targets, from logits (..., rows, K)."""
        targets_of_peers = TARGETS[self.target]([logits.detach() for logits in teachers], labels)
        losses = [
            loss(logits, target, self.temperature)
            for logits, targets in zip(peers, targets_of_peers, strict=True)
            for target in targets
        ]
        return total(losses) / len(targets_of_peers[0])


def require_equal_peers(peers: Sequence[Network]) -> None:
    """Raise UsageError unless there are two peers or more, with equal classes, channels, branches and transforms."""
    facts = [(peer.num_classes, len(peer.branches), peer.transforms, peer.in_channels) for peer in peers]
    if len(peers) < 2 or len(set(facts)) > 1:
        described = [
            f"{counted(classes, 'class')}, {counted(branches, 'branch')}, {transforms}, {counted(channels, 'channel')}"
            for classes, branches, transforms, channels in facts
        ]
        raise UsageError(
            "networks: expected two or more peers with equal classes, branches, transforms and channels, got "
            f"{described}"
        )
