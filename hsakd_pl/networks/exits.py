"""Answers of a network with branches, one after the other: ensembles of its heads, and leaving before all are asked.

What an exit costs counts from the first layer on, all that ran before it included.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import NetworkOutput
from hsakd_pl.ops import Transforms

# Yields the logits (b, N) of an exit for the b images that have not left, and is sent which of them stay (b,), or None
# for all of them.
Exits = Generator[Tensor, Tensor | None, None]


def branch_exits(network: HSAKDNet, images: Tensor) -> Exits:
    """Answer with branch 1..L as the stages come, and with the class head at last, for images (B, 3, S, S).

    Branches at the side of a network: Teerapittayanon et al., ICPR 2016 (BranchyNet). Each branch repeats the stages
    that follow, so the first costs as much as the class head alone.
    """
    features = network.backbone.stem(images)
    for stage, branch in zip(network.backbone.stages, network.branches, strict=True):
        features = stage(features)
        [logits] = network.transforms.view_logits(branch(features), range(1))
        features = _staying(features, (yield logits))
    yield network.backbone.forward_head(features)


def ensemble_exits(network: HSAKDNet, images: Tensor) -> Exits:
    """Answer with the class head, all heads, and all heads under all M transformations, for images (B, 3, S, S).

    A cascade of ensembles, each of which contains the one before: Wang et al., ICLR 2022 (Wisdom of Committees).
    """
    transforms, heads = network.transforms, 1 + len(network.branches)
    logits, _, features, _ = network.backbone.outputs(images)
    staying = yield logits
    joint_logits = [branch(_staying(each, staying)) for branch, each in zip(network.branches, features, strict=True)]
    images, known = _staying(images, staying), NetworkOutput(_staying(logits, staying), joint_logits, [], None)
    total = head_logits(known, transforms, range(1)).sum((0, 1))
    staying = yield total / heads
    images, total = _staying(images, staying), _staying(total, staying)
    for view in range(1, transforms.count):
        total = total + head_logits(network.outputs(transforms.apply(images, view)), transforms, [view]).sum((0, 1))
    yield total / (heads * transforms.count)


def _staying(rows: Tensor, staying: Tensor | None) -> Tensor:
    return rows if staying is None else rows[staying]


def head_logits(output: NetworkOutput, transforms: Transforms, views: Sequence[int]) -> Tensor:
    """Give the class logits (L + 1, V, B, N) of branches 1..L and class head, of V * B rows made by V ``views``."""
    own = output.logits.unflatten(0, (len(views), -1))
    return torch.stack([*(transforms.view_logits(joint, views) for joint in output.joint_logits), own]).float()


@torch.no_grad()
def early_exit(
    network: HSAKDNet,
    images: Tensor,
    threshold: float,
    exits: Callable[[HSAKDNet, Tensor], Exits] = branch_exits,
) -> tuple[Tensor, Tensor]:
    """Take for each image the first exit whose highest softmax probability is ``threshold`` at least, or the last.

    What comes after is not computed for it. Returns the logits (B, N) of that exit, and its number (B,) from 0.
    """
    asked = exits(network, images)
    logits = next(asked)
    found, number = logits.clone(), torch.zeros(len(images), dtype=torch.long, device=images.device)
    staying = torch.arange(len(images), device=images.device)
    while (unsure := logits.float().softmax(1).amax(1) < threshold).any():
        try:
            logits = asked.send(unsure)
        except StopIteration:
            break
        staying = staying[unsure]
        found[staying] = logits
        number[staying] += 1
    return found, number


def first_sure(logits: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Give, of the logits (K, B, N) of K exits, the number that :func:`early_exit` takes: (thresholds, B)."""
    confidence = logits.float().softmax(2).amax(2)
    sure = confidence >= torch.tensor(thresholds, device=logits.device)[:, None, None]
    sure[:, -1] = True
    return sure.int().argmax(1)  # the first of several
