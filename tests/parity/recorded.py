"""Provide networks that return recorded logits: staged backbones whose parameters are the recorded rows."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks import HSAKDNet, StagedBackbone


def rows_of(images: Tensor) -> Tensor:
    """Return images (B, C, S, S) in the recorded row order (4B, C, S, S): rotations 0..3 of image 0, of image 1, ..."""
    return torch.stack([torch.rot90(images, quarter, (2, 3)) for quarter in range(4)], dim=1).flatten(0, 1)


class FindRows(nn.Module):
    """Map images (M, C, S, S) to their recorded row numbers (M, 1, 1, 1)."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_of(images).flatten(1).double(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        distances = torch.cdist(images.flatten(1).double(), self.get_buffer("rows"))
        nearest, numbers = distances.min(dim=1)
        assert nearest.max() < 1e-4, "an input is not one of the recorded images in any of the four rotations"
        return numbers.reshape(-1, 1, 1, 1).double()


class RecordedHead(nn.Module):
    """Return the recorded row of each image; the rows are the parameter."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, numbers: Tensor) -> Tensor:
        return self.logits[numbers.detach().flatten().long()]


class RecordedBackbone(StagedBackbone):
    """Build one identity stage per branch, and heads in the order in which a network makes them."""

    def __init__(self, images: Tensor, logits: Tensor, joint_logits: Sequence[Tensor]) -> None:
        self._heads = iter([logits, *joint_logits])
        stages = len(joint_logits)
        super().__init__(FindRows(images), (1,) * (stages + 1), (1,) * (stages + 1), logits.shape[1])

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, num_outputs: int) -> nn.Module:
        logits = next(self._heads)
        assert logits.shape[1] == num_outputs, "a head was made out of order"
        return RecordedHead(logits)


def recorded_network(images: Tensor, logits: Tensor, joint_logits: Sequence[Tensor]) -> HSAKDNet:
    """Return a network with class logits ``logits`` (4B, N) and joint logits ``joint_logits[l]`` (4B, 4N) of branch l.

    It recognises the rotated ``images`` (B, C, S, S) in any order of the rows.
    """
    return HSAKDNet(RecordedBackbone(images, logits, joint_logits))


def head_of(network: HSAKDNet, branch: int | None = None) -> nn.Parameter:
    """Return the recorded rows of the class head, or of a branch 0..L-1."""
    module = network.backbone if branch is None else network.branches[branch]
    (head,) = (part for part in module.modules() if isinstance(part, RecordedHead))
    return head.logits
