"""Early exits and ensembles of a network with branches: each exit returns logits, and needs what ran before it.

The cost of an exit includes everything that ran before it, from the first layer on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.network import NetworkOutput, outputs_of
from hsakd_pl.ops import Transforms

# Maps tensors with B rows to class logits (B, N) and the tensors, with B rows each, that the next exit starts from.
# The first exit starts from images (B, 3, S, S).
Exit = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


def branch_exits(network: HSAKDNet) -> list[Exit]:
    """Return exits at branches 1..L, in the order of the stages, and at the class head.

    Branches as early exits: Teerapittayanon et al., ICPR 2016 (BranchyNet). Each branch repeats the stages that follow
    it, so the first exit costs as much as the class head.
    """
    backbone = network.backbone

    def branch_exit(stage: nn.Module, branch: nn.Module, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = stage(features)
        (logits,) = network.transforms.view_logits(branch(features), range(1))
        return logits, (features,)

    def class_head_exit(features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return backbone.forward_head(features), (features,)

    first_stage, *later_stages = backbone.stages
    stages = [nn.Sequential(backbone.stem, first_stage), *later_stages]
    branches = [partial(branch_exit, stage, branch) for stage, branch in zip(stages, network.branches, strict=True)]
    return [*branches, class_head_exit]


def ensemble_exits(network: HSAKDNet) -> list[Exit]:
    """Return exits at the class head, at the mean of all heads, and at their mean under all M transformations.

    A cascade of ensembles, each of which contains the one before: Wang et al., ICLR 2022 (Wisdom of Committees).
    """
    transforms = network.transforms
    heads = 1 + len(network.branches)

    def class_head_exit(images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = outputs_of(network.backbone, images)
        return output.logits, (images, output.logits, *output.features)

    def all_heads_exit(images: Tensor, logits: Tensor, *features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        joint_logits = [branch(feature_map) for branch, feature_map in zip(network.branches, features, strict=True)]
        output = NetworkOutput(logits, joint_logits, [], None)
        summed = head_logits(output, transforms, range(1)).sum((0, 1))
        return summed / heads, (images, summed)

    def all_views_exit(images: Tensor, summed: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        for view in range(1, transforms.count):
            output = network.outputs(transforms.apply(images, view))
            summed = summed + head_logits(output, transforms, [view]).sum((0, 1))
        return summed / (heads * transforms.count), (images, summed)

    return [class_head_exit, all_heads_exit, all_views_exit]


def head_logits(output: NetworkOutput, transforms: Transforms, views: Sequence[int]) -> Tensor:
    """Return the class logits (L + 1, V, B, N) of branches 1..L and the class head.

    Args:
        output: output for V * B rows, the images under each of the views.
        transforms: transformations that the views are numbers of.
        views: V numbers of transformations.
    """
    branch_logits = [transforms.view_logits(joint_logits, views) for joint_logits in output.joint_logits]
    class_logits = output.logits.unflatten(0, (len(views), -1))
    return torch.stack([*branch_logits, class_logits]).float()


def exit_logits(network: HSAKDNet, images: Tensor, exits: Callable[[HSAKDNet], Sequence[Exit]]) -> Iterator[Tensor]:
    """Yield the logits (B, N) of each exit, for all images (B, 3, S, S)."""
    state: tuple[Tensor, ...] = (images,)
    for compute_exit in exits(network):
        logits, state = compute_exit(*state)
        yield logits


@torch.no_grad()
def early_exit(
    network: HSAKDNet,
    images: Tensor,
    threshold: float,
    exits: Callable[[HSAKDNet], Sequence[Exit]] = branch_exits,
    temperatures: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logits (B, N) of the first exit that is confident about each image, and the exit's number (B,).

    Later exits are not computed for an image that has left.

    Args:
        network: a network with branches, in eval mode.
        images: images (B, 3, S, S).
        threshold: least probability of the most probable class at which an image leaves; at the last exit all leave.
        exits: :func:`branch_exits` or :func:`ensemble_exits`.
        temperatures: divisor of the logits of each exit, also of those that are returned; by default 1.
    """
    taken_logits = images.new_zeros(len(images), network.num_classes, dtype=torch.float32)
    taken_exit = torch.zeros(len(images), dtype=torch.long, device=images.device)
    active = torch.ones(len(images), dtype=torch.bool, device=images.device)
    state: tuple[Tensor, ...] = (images,)
    for number, compute_exit in enumerate(exits(network)):
        exit_output, state = compute_exit(*state)
        logits = exit_output.float() / (1 if temperatures is None else temperatures[number])
        taken_logits[active] = logits
        taken_exit[active] = number
        unsure = logits.softmax(1).amax(1) < threshold
        if not unsure.any():
            break
        state = tuple(rows[unsure] for rows in state)
        active[active.clone()] = unsure
    return taken_logits, taken_exit


def first_sure(logits: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return the numbers (thresholds, B) of the exits that :func:`early_exit` takes, given the logits (K, B, N)."""
    confidence = logits.float().softmax(2).amax(2)
    sure = confidence >= torch.tensor(thresholds, device=logits.device)[:, None, None]
    sure[:, -1] = True
    return sure.int().argmax(1)  # the first of several
