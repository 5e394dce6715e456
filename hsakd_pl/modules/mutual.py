"""Mutual distillation: peers that learn together, without a teacher (Sec. 4.6, online)."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.base import Batch, HSAKDModule
from hsakd_pl.modules.build import build_network, not_by_name, with_branches
from hsakd_pl.ops import joint_cross_entropy, kd_loss, rotate, total
from hsakd_pl.weights import load_weights


class MutualModule(HSAKDModule):
    """Each peer: the teacher's loss, plus KD of class and joint logits towards every other peer, that one detached.

    With more than two peers the KD terms are averaged over the others (deep mutual learning, Zhang et al., CVPR 2018).
    ``networks``: two or more registry names or networks, equal or not, with equally many branches. ``weights``: a file
    with the weights of all peers. The result, ``val/acc``, is the mean over the peers; each peer's stands beside it.
    """

    def __init__(
        self,
        networks: Sequence[str | nn.Module],
        weights: str | None = None,
        num_classes: int = 100,
        temperature: float = 3.0,  # T = 3: Sec. 4.1 of the paper
        ce_weight: float = 1.0,
        joint_ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        joint_kd_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        peers = [with_branches(build_network(network, num_classes, weights=None)) for network in networks]
        classes = [getattr(peer, "num_classes", num_classes) for peer in peers]
        branches = [len(getattr(peer, "branches", ())) for peer in peers]
        if len(peers) < 2 or len(set(branches)) > 1 or len(set(classes)) > 1:
            raise UsageError(
                "networks: two or more peers with equally many classes and branches are needed, "
                f"got classes {classes}, branches {branches}"
            )
        if weights is not None:
            load_weights(peers, weights)
        loss_weights = {
            "loss_ce": ce_weight,
            "loss_joint_ce": joint_ce_weight,
            "loss_kd": kd_weight,
            "loss_joint_kd": joint_kd_weight,
        }
        super().__init__(peers, loss_weights, num_classes, **kwargs)
        self.save_hyperparameters(ignore=not_by_name(networks=networks))
        self.temperature = temperature

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        inputs, others = rotate(images), len(self.networks) - 1
        outputs = [peer(inputs) for peer in self.networks]
        class_pairs = permutations([peer.logits for peer in outputs], 2)
        joint_pairs = permutations([torch.stack(peer.joint_logits) for peer in outputs], 2)
        return {
            "loss_ce": total(F.cross_entropy(peer.logits[: len(labels)], labels) for peer in outputs),
            "loss_joint_ce": total(joint_cross_entropy(peer.joint_logits, labels) for peer in outputs),
            "loss_kd": total(kd_loss(*pair, self.temperature) for pair in class_pairs) / others,
            "loss_joint_kd": total(kd_loss(*pair, self.temperature) for pair in joint_pairs) / others,
        }
