"""The staged backbone: the base class of all architectures that can have auxiliary branches."""

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
    """Build the stages and the head of a backbone, or of one branch."""

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        """Build a fresh stage 1..L: (B, in_channels, S, S) -> (B, channels[stage], S / stride, S / stride)."""

    def make_head(self, num_outputs: int) -> nn.Module:
        """Build a fresh head, a sequence that ends in its linear layer: (B, channels[-1], S, S) -> (B, num_outputs)."""


def averaging_layer(head: nn.Sequential) -> int:
    """Return the position of the layer whose averages over a map are the input of the last layer; -1 without one."""
    position = len(head) - 2
    while position >= 0 and isinstance(head[position], nn.Flatten | nn.Dropout | nn.Identity):
        position -= 1
    layer = head[position] if position >= 0 else None
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        averages = layer.output_size in (1, (1, 1))
    else:  # timm's layer, without importing timm
        averages = type(layer).__name__ == "SelectAdaptivePool2d" and getattr(layer, "pool_type", "") in ("avg", "fast")
    return position if averages else -1


def check_side(height: int, width: int, only: int, least: int) -> None:
    """Raise UsageError for images of another side than the only one that a network takes, if not 0, or the least."""
    if only > 0 and (height != only or width != only):
        raise UsageError(
            f"image size {height} x {width}: the network only takes images of {only} x {only} pixels; set image_size "
            f"{only}, or create the network for yours by its name and @{height}"
        )
    if min(height, width) < least:
        raise UsageError(
            f"image size {height} x {width}: the network has a total stride of {least}; use images of at "
            f"least {least} x {least} pixels"
        )


class StagedBackbone(Network):
    """Map images (B, C, S, S) to logits (B, N) by a stem, stages 1..L and a class head.

    A new architecture is a subclass that implements :meth:`make_stage` and :meth:`make_head`; the branches
    (:func:`hsakd_pl.networks.hsakd.make_branch`) are built by these two methods as well. ``backbone_init`` and
    ``branch_init`` are functions that replace PyTorch's initial weights; they are applied to every layer.

    Args:
        stem: module before the first stage.
        channels: output channels of the stem and of each stage (L + 1 numbers).
        strides: strides of the stem and of each stage (L + 1 numbers).
        num_classes: number of classes N.
        maker: builds stages and head instead of this object.
        in_channels: channels C of the images.

    Examples:
        >>> class SmallNet(StagedBackbone):
        ...     def __init__(self, num_classes):
        ...         stem = nn.Conv2d(3, 16, 3, padding=1)
        ...         super().__init__(stem, channels=(16, 32, 64), strides=(1, 2, 2), num_classes=num_classes)
        ...
        ...     def make_stage(self, stage, in_channels, stride):
        ...         convolution = nn.Conv2d(in_channels, self.channels[stage], 3, stride, padding=1)
        ...         return nn.Sequential(convolution, nn.BatchNorm2d(self.channels[stage]), nn.ReLU())
        ...
        ...     def make_head(self, num_outputs):
        ...         linear = nn.Linear(self.channels[-1], num_outputs)
        ...         return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        >>> SmallNet(10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
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
        in_channels: int | None = None,
    ) -> None:
        super().__init__(num_classes)
        self.in_channels = in_channels or self.in_channels
        maker = maker or self
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.least_size = prod(strides)  # side in pixels that leaves something after all strides
        self.only_size = 0  # side in pixels, where the network takes no other
        self.stem = stem
        self.stages = nn.ModuleList(
            maker.make_stage(stage, channels[stage - 1], strides[stage]) for stage in range(1, len(channels))
        )
        head = maker.make_head(num_classes)
        self.head = head if isinstance(head, nn.Sequential) else nn.Sequential(head)
        self.pool_position = averaging_layer(self.head)
        for initialize in self.backbone_init:
            self.apply(initialize)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        """Build a fresh stage.

        Args:
            stage: number of the stage, from 1 to L.
            in_channels: channels of its input.
            stride: stride of the stage.

        Returns:
            Stage that maps (B, in_channels, S, S) to (B, channels[stage], S / stride, S / stride).

        Examples:
            >>> backbone = create_network("resnet8", branches=False)
            >>> backbone.make_stage(2, in_channels=16, stride=2)(torch.zeros(1, 16, 32, 32)).shape
            torch.Size([1, 32, 16, 16])
        """
        raise NotImplementedError(f"{type(self).__name__} must implement make_stage")

    def make_head(self, num_outputs: int) -> nn.Module:
        """Build a fresh head.

        Args:
            num_outputs: number of logits.

        Returns:
            Sequence that ends in its linear layer and maps (B, channels[-1], S, S) to (B, num_outputs).

        Examples:
            >>> backbone = create_network("resnet8", branches=False)
            >>> backbone.make_head(10)(torch.zeros(1, 64, 8, 8)).shape
            torch.Size([1, 10])
        """
        raise NotImplementedError(f"{type(self).__name__} must implement make_head")

    def branch_maker(self) -> PartMaker:
        """Return the object that builds the stages and the head of one branch."""
        return self

    def check_image_size(self, height: int, width: int) -> None:
        check_side(height, width, self.only_size, self.least_size)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps after stages 1..L.

        Args:
            images: normalised images (B, C, S, S).

        Returns:
            L feature maps (B, C, H, W).

        Raises:
            UsageError: for images that are too small for the network's strides.

        Examples:
            >>> backbone = create_network("resnet8", branches=False)
            >>> [tuple(feature_map.shape) for feature_map in backbone.forward_features(torch.zeros(1, 3, 32, 32))]
            [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
        """
        self.check_image_size(images.shape[-2], images.shape[-1])
        features = self.stem(images)
        taps = []
        for stage in self.stages:
            features = stage(features)
            taps.append(features)
        return taps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last feature map to logits.

        Args:
            features: last feature map (B, C, H, W).
            pre_logits: return the embedding, the input of the last linear layer.

        Returns:
            Logits (B, N), or the embedding (B, D).

        Examples:
            >>> backbone = create_network("resnet8", num_classes=10, branches=False)
            >>> last_map = backbone.forward_features(torch.zeros(1, 3, 32, 32))[-1]
            >>> backbone.forward_head(last_map).shape, backbone.forward_head(last_map, pre_logits=True).shape
            (torch.Size([1, 10]), torch.Size([1, 64]))
        """
        for position, layer in enumerate(self.head):
            if not pre_logits or position < len(self.head) - 1:
                features = layer(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images)[-1])

    @property
    def linear_head(self) -> nn.Linear:
        linear = self.head[-1]
        if not isinstance(linear, nn.Linear):
            raise UsageError(
                f"network: the head of {type(self).__name__} ends in a {type(linear).__name__}, not linear"
            )
        return linear

    def outputs(self, images: Tensor) -> NetworkOutput:
        features = self.forward_features(images)
        embedding = features[-1]
        pooled_map: Tensor | None = None
        for position, layer in enumerate(self.head):
            if position == self.pool_position:
                pooled_map = embedding
            if position < len(self.head) - 1:
                embedding = layer(embedding)
        return NetworkOutput(self.head[-1](embedding), [], features, embedding, pooled_map)
