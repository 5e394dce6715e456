"""What every network answers, whoever made it."""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.ops import ROTATIONS, Transforms

# Rules (pattern, replacement) that turn our state-dict keys, without "backbone.", into the published ones: applied one
# after the other by re.sub; a callable gets the pattern's groups as integers.
KeyRules = tuple[tuple[str, str | Callable[..., str]], ...]

if TYPE_CHECKING:  # None, too, but methods that checked `shapes` need not rule it out again
    Embedding = Tensor | Any
else:
    Embedding = Tensor | None


class NetworkOutput(NamedTuple):
    """All that a network makes of B images, in their order; of M * B rows where they were transformed.

    ``logits`` (B, N) of the class head; ``joint_logits``, L tensors (B, M * N), one a branch; ``features``, L maps
    (B, C, H, W) after the stages; ``embedding`` (B, D), the input of the last linear layer. A network that has no
    branches, or does not show its inside, leaves the rest empty.
    """

    logits: Tensor
    joint_logits: list[Tensor]
    features: list[Tensor]
    embedding: Embedding

    def maps(self) -> list[Tensor]:
        """Give the features, and the embedding, where there is one, as a map of one position at their end."""
        if self.embedding is None:
            return [*self.features]
        return [*self.features, self.embedding[:, :, None, None]]

    @property
    def width(self) -> int:
        """D of the embedding, 0 without one."""
        return 0 if self.embedding is None else self.embedding.shape[1]


class Network(nn.Module):
    """Base of all networks: a classifier of ``num_classes`` with no, or several, ``branches`` of joint logits.

    ``transforms`` are those whose joint labels the branches learn. Calling a network with branches gives a
    :class:`NetworkOutput`, calling one without its logits (B, N) alone.
    """

    __jit_unused_properties__ = ("without_branches", "num_joint_classes", "output_layers")
    published_keys: KeyRules = ()
    name: str | None = None  # by which create_network makes it again

    def __init__(self, num_classes: int, transforms: Transforms = ROTATIONS) -> None:
        super().__init__()
        if num_classes < 2:
            raise UsageError(f"num_classes: a classifier needs at least 2 classes, got {num_classes}")
        self.num_classes = num_classes
        self.transforms = transforms
        self.branches: Any = ()  # a ModuleList where there are some

    @property
    def num_joint_classes(self) -> int:
        """M * N, the width of a branch's logits."""
        return self.transforms.count * self.num_classes

    @property
    def without_branches(self) -> "Network":
        """The part that gives class logits (B, N) alone; the network itself where it has no branches."""
        return self

    @property
    def output_layers(self) -> list[str]:
        """Paths of the linear layers that give logits: the class head's, then each branch's, the last in its part."""
        last_linear = {}
        for path, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                branch = re.match(r"branches\.\d+", path)
                last_linear[branch[0] if branch else ""] = path
        return list(last_linear.values())

    def outputs(self, images: Tensor) -> NetworkOutput:
        """Pass once through the whole network: images (B, 3, S, S) -> all that it makes of them."""
        return NetworkOutput(self(images), [], [], None)

    def shapes(self, image_size: int, *parts: str) -> NetworkOutput:
        """Give the outputs for one image without numbers, for their shapes; nothing of the network changes.

        Raises UsageError where these lack one of ``parts``: ``features``, ``embedding``.
        """
        copy = deepcopy(self).to("meta").eval()
        dtype = next((weight.dtype for weight in copy.parameters()), torch.float32)
        output = copy.outputs(torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta"))
        missing = [part for part in parts if getattr(output, part) is None or not len(getattr(output, part))]
        if missing:
            raise UsageError(
                f"network: {type(self).__name__} shows no {' nor '.join(missing)} to distill: derive it from "
                "hsakd_pl.networks.Network with outputs of its own, or choose a method that needs logits alone"
            )
        return output

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError if images of this size are too small."""


class Classifier(Network):
    """Any other ``nn.Module`` of images (B, 3, S, S) -> logits (B, N), as a network without branches."""

    published_keys = ((r"^network\.", ""),)

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__(num_classes)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def outputs(self, images: Tensor) -> NetworkOutput:
        logits = self(images)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (len(images), self.num_classes):
            raise UsageError(
                f"network: {type(self.network).__name__} gives {shape}, not logits {(len(images), self.num_classes)}: "
                "set num_classes, or derive a network with other outputs from hsakd_pl.networks.Network"
            )
        return NetworkOutput(logits, [], [], None)


def as_network(network: nn.Module, num_classes: int) -> Network:
    """Give a network of the package's protocol back as it is, and wrap any other as a :class:`Classifier`."""
    return network if isinstance(network, Network) else Classifier(network, num_classes)
