"""Mutual distillation: peers that learn together, without a teacher (Sec. 4.6, online)."""

import math
from collections.abc import Sequence
from itertools import permutations

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_own_weights
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.options import BranchOptions
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.ops import Transforms, cross_entropy, joint_cross_entropy, joint_kd_loss, kd_loss, total
from hsakd_pl.signatures import Unpack


class MutualModule(HSAKDModule):
    """Minimise, for each peer, the teacher's loss plus KD of class and joint logits towards every other peer.

    The other peer is detached; with more than two peers, KD is averaged over the others (deep mutual learning, Zhang et
    al., CVPR 2018). ``val/acc`` is the mean over the peers; the accuracy of each peer is logged too. With both joint
    weights at 0 the branches are left out, and images are not transformed.

    Args:
        networks: two or more names or networks, with equal classes, branches and transforms.
        weights: weight file of all peers, or ``pretrained`` for the weights that timm publishes.
        num_classes: number of classes of networks given by name.
        transforms: transformations of networks given by name: an object, ``rotations``, ``flips``, ``colours``, an
            import path, or a product of these.
        temperature: temperature of both KD terms; T = 3: Sec. 4.1 of the paper.
        ce_weight: weight of the class heads' cross-entropy.
        joint_ce_weight: weight of the branches' cross-entropy.
        kd_weight: weight of the class heads' KD.
        joint_kd_weight: weight of the branches' KD.
        new_head: keep the last layers of the class head and of the branches freshly initialised, for ``weights`` of
            other classes.

    Other arguments: :class:`HSAKDModule`.
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
        **options: Unpack[BranchOptions],
    ) -> None:
        branches = joint_ce_weight > 0 or joint_kd_weight > 0
        peers = [build_network(network, num_classes, branches, transforms) for network in networks]
        require_equal_peers(peers)
        require_own_weights(peers, "networks: the peers")
        require(0 < temperature < math.inf, "temperature", temperature, "above 0")
        weight_files = load_initial("weights", weights, [*peers], new_head)
        super().__init__(peers, **options)
        self.weight_files = weight_files
        self.set_loss_weights(loss_ce=ce_weight, loss_kd=kd_weight)
        if branches:
            self.set_loss_weights(loss_joint_ce=joint_ce_weight, loss_joint_kd=joint_kd_weight)
        self.temperature = temperature
        self.views = peers[0].transforms.count if branches else 1

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        inputs = self.network.transforms(images) if self.network.branches else images
        outputs = [peer.outputs(inputs) for peer in self.networks]
        return self.terms(outputs, outputs, labels)

    def terms(  # type: ignore[override]  # lists: one output per peer
        self, student: list[NetworkOutput], teacher: list[NetworkOutput], labels: Tensor
    ) -> dict[str, Tensor]:
        others = len(student) - 1
        pairs = [(student[peer], teacher[other]) for peer, other in permutations(range(len(student)), 2)]
        kd = total(kd_loss(peer.logits, other.logits, self.temperature) for peer, other in pairs)
        ce = total(cross_entropy(peer.logits[: len(labels)], labels) for peer in student)
        terms = {"loss_ce": ce, "loss_kd": kd / others}
        if student[0].joint_logits:
            joint_labels = self.network.transforms.joint_labels(labels)
            joint_kd = [joint_kd_loss(peer.joint_logits, other.joint_logits, self.temperature) for peer, other in pairs]
            terms["loss_joint_ce"] = total(joint_cross_entropy(peer.joint_logits, joint_labels) for peer in student)
            terms["loss_joint_kd"] = total(joint_kd) / others
        return terms


def require_equal_peers(peers: Sequence[Network]) -> None:
    """Raise UsageError unless there are two peers or more, with equal classes, branches and transforms."""
    facts = [(peer.num_classes, len(peer.branches), peer.transforms) for peer in peers]
    if len(peers) < 2 or len(set(facts)) > 1:
        described = [
            f"{counted(classes, 'class')}, {counted(branches, 'branch')}, {transforms}"
            for classes, branches, transforms in facts
        ]
        raise UsageError(
            f"networks: expected two or more peers with equal classes, branches and transforms, got {described}"
        )
