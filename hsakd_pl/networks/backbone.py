"""The staged backbone: what every architecture declares, and all that the auxiliary branches need to know of it."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.network import KeyRules, Network, NetworkOutput

Initializers = tuple[Callable[[nn.Module], None], ...]

RESNET_KEYS: KeyRules = (
    (r"^stem\.|^head\.", ""),
    (r"^stages\.(\d+)", lambda stage: f"layer{stage + 1}"),
    (r"^branches\.(\d+)\.stages", lambda branch: f"block_extractor{branch + 1}"),
    (r"^branches\.(\d+)\.head\.fc", lambda branch: f"fc{branch + 1}"),
)


class PartMaker(Protocol):
    """Builds the stages and the head of a backbone, or of one branch."""

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        """Build a fresh stage 1..L: (B, in_channels, S, S) -> (B, channels[stage], S / stride, S / stride)."""

    def make_head(self, num_outputs: int) -> nn.Module:
        """Build a fresh head, a sequence that ends in its linear layer: (B, channels[-1], S, S) -> (B, num_outputs)."""


class StagedBackbone(Network):
    """Stem, stages 1..L and a class head; images (B, 3, S, S) -> logits (B, N).

    A backbone of one's own is one subclass: ``__init__`` passes the data below, ``make_stage`` and ``make_head`` build
    the parts. The branches (:func:`hsakd_pl.networks.hsakd.make_branch`) are built by these same two makers.
    ``backbone_init`` and ``branch_init`` are applied to all layers where PyTorch's initial weights are not wanted.

    ``channels``: of the stem's output, then of each stage's output (L + 1 numbers). ``strides``: of the stem, then of
    each stage.
    """

    backbone_init: Initializers = ()
    branch_init: Initializers = ()

    def __init__(
        self,
        stem: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        maker: PartMaker | None = None,
    ) -> None:
        super().__init__(num_classes)
        maker = maker or self
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.least_size = prod(strides)  # side in pixels that leaves something after all strides
        self.stem = stem
        self.stages = nn.ModuleList(
            maker.make_stage(stage, channels[stage - 1], strides[stage]) for stage in range(1, len(channels))
        )
        head = maker.make_head(num_classes)
        self.head = head if isinstance(head, nn.Sequential) else nn.Sequential(head)
        for initialize in self.backbone_init:
            self.apply(initialize)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        """Build a fresh stage 1..L: (B, in_channels, S, S) -> (B, channels[stage], S / stride, S / stride)."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_stage")

    def make_head(self, num_outputs: int) -> nn.Module:
        """Build a fresh head, a sequence that ends in its linear layer: (B, channels[-1], S, S) -> (B, num_outputs)."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_head")

    def branch_maker(self) -> PartMaker:
        """Return what builds the stages and the head of one branch."""
        return self

    def check_image_size(self, height: int, width: int) -> None:
        if min(height, width) < self.least_size:
            raise UsageError(
                f"the network reduces an image {self.least_size} times: it needs at least {self.least_size} pixels a "
                f"side, got {height} x {width}"
            )

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Give the feature maps after stages 1..L."""
        self.check_image_size(images.shape[-2], images.shape[-1])
        features = self.stem(images)
        taps = []
        for stage in self.stages:
            features = stage(features)
            taps.append(features)
        return taps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last stage's output to logits (B, N), or with ``pre_logits`` to the embedding (B, D)."""
        for position, layer in enumerate(self.head):
            if not pre_logits or position < len(self.head) - 1:
                features = layer(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images)[-1])

    def outputs(self, images: Tensor) -> NetworkOutput:
        features = self.forward_features(images)
        embedding = self.forward_head(features[-1], pre_logits=True)
        return NetworkOutput(self.head[-1](embedding), [], features, embedding)
