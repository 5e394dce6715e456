"""The protocol of all networks: what they return, and what the package needs to know of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parameter import is_lazy

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files.weights import WeightFile, shorten
from hsakd_pl.networks.copies import SavedBuffers, copied
from hsakd_pl.networks.heads import SIZES, output_layers
from hsakd_pl.ops import ROTATIONS, Transforms

# Rules (pattern, replacement) that turn state-dict keys without "backbone." into the published keys. They are applied
# in order by re.sub; a callable gets the pattern's groups as integers.
KeyRules = tuple[tuple[str, str | Callable[..., str]], ...]

if TYPE_CHECKING:  # it may be None, but methods that have called `shapes` need not check again
    Embedding = Tensor | Any
else:
    Embedding = Tensor | None


class NetworkOutput(NamedTuple):
    """Hold the outputs of a network for B images, or for M * B rows if the images were transformed.

    Args:
        logits: class logits (B, N).
        joint_logits: joint logits (B, M * N) of each of the L branches; empty without branches.
        features: feature maps (B, C, H, W) after each of the L stages; empty if the network does not return them.
        embedding: input (B, D) of the last linear layer; None if the network does not return it.
        pooled_map: map (B, D, H, W) whose average over the positions is the embedding; None if the network does not
            return it. It differs from the last of ``features`` where the head begins with other layers.

    Examples:
        >>> output = create_network("resnet8", num_classes=10)(torch.zeros(1, 3, 32, 32))
        >>> [tuple(logits.shape) for logits in output.joint_logits], output.embedding.shape
        ([(1, 40), (1, 40), (1, 40)], torch.Size([1, 64]))
    """

    logits: Tensor
    joint_logits: list[Tensor]
    features: list[Tensor]
    embedding: Embedding
    pooled_map: Embedding = None

    def maps(self) -> list[Tensor]:
        """Return the feature maps, followed by the embedding as a map (B, D, 1, 1) if there is one."""
        if self.embedding is None:
            return [*self.features]
        return [*self.features, self.embedding[:, :, None, None]]

    @property
    def width(self) -> int:
        """Width D of the embedding, or 0 without one."""
        return 0 if self.embedding is None else self.embedding.shape[1]


def outputs_of(network: "Network", images: Tensor) -> NetworkOutput:
    """Return all outputs of a network for images (B, C, S, S), which it cannot change in place: it gets a copy."""
    return network.outputs(images.clone())


def joined(parts: Sequence[NetworkOutput]) -> NetworkOutput:
    """Return the outputs for several batches as those for one, whose rows are in the order of the batches."""
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(*map(_joined_values, zip(*parts, strict=True)))


def _joined_values(values: tuple[Any, ...]) -> Any:
    """Join tensors, or lists of tensors, of several batches; all are None where a network returns none."""
    if values[0] is None:
        return None
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    return [torch.cat(tensors) for tensors in zip(*values, strict=True)]


class Network(nn.Module):
    """Base class of all networks: a classifier with or without branches of joint logits.

    Called on images (B, C, S, S) of C = ``in_channels`` channels, a network with branches returns a
    :class:`NetworkOutput`, a network without branches logits (B, N).

    Args:
        num_classes: number of classes N.
        transforms: the M transformations whose joint labels the branches learn.
    """

    __jit_unused_properties__ = (
        "without_branches",
        "num_joint_classes",
        "output_layers",
        "linear_head",
        "pretrained_cfg",
    )
    published_keys: KeyRules = ()
    in_channels: int = 3  # channels C of its images; a subclass for others sets it
    name: str | None = None  # name from which create_network builds it
    weights_from: WeightFile | None = None  # what is known of its weights' origin; without the weights

    def __init__(self, num_classes: int, transforms: Transforms = ROTATIONS) -> None:
        super().__init__()
        if num_classes < 2:
            hint = "" if num_classes else ": name data with classes, or choose EmbeddingModule, which needs none"
            raise UsageError(f"num_classes: a classifier needs at least 2 classes, got {num_classes}{hint}")
        self.num_classes = num_classes
        self.transforms = transforms
        self.branches: Any = ()  # a ModuleList where there are some

    def remember(self, file: WeightFile, new_head: bool = False) -> None:
        """Keep what is known of the origin of the weights, in the network and in its part without branches.

        A new head has not learnt the classes of the file.
        """
        description = file.description
        if new_head and description is not None:
            description = {**description, "class_names": [str(label) for label in range(self.num_classes)]}
        for network in (self, self.without_branches):
            network.weights_from = replace(file, weights=None, description=description)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """Facts that timm states about a model and its published weights; empty for other networks."""
        part = self.without_branches
        return {} if part is self else part.pretrained_cfg

    @property
    def num_joint_classes(self) -> int:
        """Number of joint labels M * N, the width of a branch's logits."""
        return self.transforms.count * self.num_classes

    @property
    def without_branches(self) -> "Network":
        """The part that returns class logits (B, N); the network itself if it has no branches."""
        return self

    @property
    def output_layers(self) -> list[list[str]]:
        """Paths of the layers that return the class logits, then of those of each branch; empty if unknown."""
        return output_layers(self, self.in_channels)

    @property
    def linear_head(self) -> nn.Linear:
        """The layer that maps the embedding (B, D) to the class logits (B, N).

        Raises UsageError if the network does not name it.
        """
        part = self.without_branches
        if part is self:
            raise UsageError(
                f"network: {type(self).__name__} names no linear_head: implement this property, or choose a method "
                "that does not use the head's weights"
            )
        return part.linear_head

    def outputs(self, images: Tensor) -> NetworkOutput:
        """Return all outputs for images (B, C, S, S), in one forward pass."""
        logits = self(images)
        require_logits(self, logits, images, self.num_classes)
        return NetworkOutput(logits, [], [], None)

    def shapes(self, image_size: int, *parts: str) -> NetworkOutput:
        """Return outputs for one image (C, image_size, image_size), for their shapes.

        Raises UsageError for a size that the network cannot take, and if one of
        ``parts`` (``features``, ``embedding``) is empty.
        """
        self.check_image_size(image_size, image_size)
        output = outputs_of_copy(self, image_size)
        missing = [part for part in parts if getattr(output, part) is None or not len(getattr(output, part))]
        if missing:
            raise UsageError(
                f"network: {type(self).__name__} returns no {' or '.join(missing)} to distill: derive it from "
                "hsakd_pl.networks.Network and implement outputs, or choose a method that only needs logits"
            )
        return output

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError if images of this size are too small."""


@torch.no_grad()
def outputs_of_copy(network: Network, image_size: int, count: int = 1, training: bool = False) -> NetworkOutput:
    """Return the outputs of a copy of a network for some images: on the meta device, or else on the CPU.

    The copy is in eval mode unless ``training``. The meta device computes nothing, but not every network runs there:
    one may depend on values, or on a tensor that it makes on a device of its choice.
    """
    dtype = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), torch.float32)
    for device in ("meta", "cpu"):
        images = torch.zeros(count, network.in_channels, image_size, image_size, dtype=dtype, device=device)
        try:
            copy = copied(network).to(device).train(training)
            versions = observe_stages(copy)
            with SavedBuffers(network), torch.random.fork_rng(devices=[]), torch.device(device):
                output = copy.outputs(images)
            require_unchanged(network, output.features, versions)
            return output
        except UsageError:
            raise
        except Exception:  # a network can raise anything on a device that it does not expect
            if device == "cpu":
                raise
    raise AssertionError("the loop returns or raises")


def observe_stages(network: Network) -> list[int]:
    """Return a list to which each stage of a network will append how often its map was changed in place by then."""
    versions: list[int] = []
    stages = getattr(network.without_branches, "stages", None)
    for stage in stages if isinstance(stages, nn.ModuleList) else ():
        stage.register_forward_hook(lambda layer, inputs, feature_map: versions.append(feature_map._version))
    return versions


def require_unchanged(network: Network, features: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Raise UsageError for a feature map that was changed in place after its stage: it is no longer the stage's output.

    Args:
        network: network of the maps.
        features: maps (B, C, H, W) of the stages.
        versions: how often each had been changed when its stage ended.
    """
    if len(features) != len(versions):
        return  # outputs of its own
    for stage, (feature_map, version) in enumerate(zip(features, versions, strict=True), 1):
        if feature_map._version != version:
            raise UsageError(
                f"network: what follows stage {stage} of {type(network.without_branches).__name__} changes its map in "
                "place, which distillation reads: set inplace=False in the first layer of the next stage or of the head"
            )


class Classifier(Network):
    """Any other ``nn.Module`` that maps images (B, C, S, S) to logits (B, N), as a network without branches."""

    published_keys = ((r"^network\.", ""),)

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__(num_classes)
        self.network = network

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        config = getattr(self.network, "pretrained_cfg", None)
        return config if isinstance(config, Mapping) else {}

    @property
    def output_layers(self) -> list[list[str]]:
        names = self.pretrained_cfg.get("classifier") or ()
        names = [names] if isinstance(names, str) else names
        paths = [f"network.{name}" for name in names]
        modules = dict(self.named_modules())
        return [paths] if paths and modules.keys() >= {*paths} else super().output_layers

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError if the network fails for images of this size, but not for those of a usual one."""
        error = self._failure(height)
        if error is None:
            return
        accepted = self.accepted_side()
        if accepted is not None:  # otherwise it may need a device that it is not on yet
            name = self.name or type(self.network).__name__
            raise UsageError(
                f"image size {height} x {width}: {name} fails ({type(error).__name__}: "
                f"{' '.join(str(error).split()):.100}); use images of {accepted} x {accepted} pixels, for example"
            ) from error

    def accepted_side(self) -> int | None:
        """Return a usual side of images that the network takes, if it takes one."""
        return next((side for side in SIZES if self._failure(side) is None), None)

    def _failure(self, side: int) -> Exception | None:
        """Return what a copy of the network raises for images of a side; None if it returns something.

        A network that is trained may need larger images for what it computes in training alone.
        """
        errors = (self._failure_in_mode(side, training) for training in {False, self.training})
        return next(filter(None, errors), None)

    def _failure_in_mode(self, side: int, training: bool) -> Exception | None:
        try:
            outputs_of_copy(self, side, 2, training)  # some networks squeeze the logits of one image
        except UsageError:
            return None  # it does not return logits, which a step says
        except Exception as error:  # a network can raise anything for images of another size
            return error
        return None

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if not mode and type(self.network).eval is not nn.Module.eval:  # which train of a layer around it does not call
            self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check(logits, images)
        return logits

    @torch.jit.unused
    def _check(self, logits: Any, images: Tensor) -> None:
        """Raise UsageError unless the wrapped module returned logits (B, N)."""
        require_logits(self.network, logits, images, self.num_classes)

    def outputs(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(self(images), [], [], None)


def require_logits(network: nn.Module, logits: Any, images: Tensor, num_classes: int) -> None:
    """Raise UsageError unless what a network returned for images (B, C, S, S) are logits (B, N)."""
    name = type(network).__name__
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"network: {name} returns {type(logits).__name__} instead of logits {(len(images), num_classes)}: wrap it "
            "in a module that returns its logits alone, by the three lines in docs/your-network.md"
        )
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise UsageError(
            f"network: {name} returns {tuple(logits.shape)} instead of logits {(len(images), num_classes)}: "
            "set num_classes, or derive the network from hsakd_pl.networks.Network and implement outputs"
        )
    if logits.shape[0] != images.shape[0]:  # not by len, which torch.export takes for a constant
        raise UsageError(
            f"network: {name} returns {counted(len(logits), 'row')} of logits for {counted(len(images), 'image')} of "
            f"{images.shape[-2]} x {images.shape[-1]}, as a view to a fixed width does for images of another size: use "
            "the size that it was made for, or flatten by x.flatten(1)"
        )


def as_network(network: nn.Module, num_classes: int, channels: int = 3) -> Network:
    """Return a :class:`Network` unchanged, and any other module as a :class:`Classifier` of images of ``channels``.

    Raises UsageError for a module that cannot be used as it is.
    """
    require_usable(network)
    if isinstance(network, Network):
        return network
    classifier = Classifier(network, num_classes)
    set_channels(classifier, channels, type(network).__name__)
    return classifier


def require_usable(network: nn.Module) -> None:
    """Raise UsageError for a network with weights without a shape, and for one whose mode cannot be changed."""
    name = type(network).__name__
    tensors = chain(network.named_parameters(), network.named_buffers())
    lazy = [key for key, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise UsageError(
            f"network: {name} has {counted(len(lazy), 'weight')} whose shapes its first images decide "
            f"({shorten(lazy)}): call it on some before, such as network(torch.zeros(2, 3, 32, 32))"
        )
    if "train" in vars(network):  # replaced on the instance, as by torch.export
        try:
            network.train(network.training)
        except Exception as error:
            raise UsageError(
                f"network: {name} cannot be put in train and eval mode ({type(error).__name__}: {error!s:.100}): pass "
                "the module that it was made from"
            ) from error


def set_channels(network: Network, channels: int, name: str) -> None:
    """Let a network, called ``name`` in errors, take images of a number of channels, unless this is 3.

    Raises UsageError for a network that answers for images of 3 channels, but not for these.
    """
    if channels in (3, network.in_channels):
        return
    if not output_layers(network, channels) and output_layers(network):
        raise UsageError(
            f"network {name} takes images of 3 channels, not of {channels}: give its class or function an argument "
            "in_channels for their number, or choose channels=3"
        )
    for part in (network, network.without_branches):
        part.in_channels = channels
