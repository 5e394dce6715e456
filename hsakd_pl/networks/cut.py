"""Cut a model of timm's into a stem, stages and a head at the taps of its ``feature_info``."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.layers import conv1x1, named

STAGES = 4  # after the last taps, as many as the ImageNet resnets have here: all families pair
LEAST_SIZE = 64  # side in pixels of the image that shows how a model calls its layers
WITHOUT_BRANCHES = "take branches=False, or joint_kd_weight=0 where it is a teacher"

DROPOUT = "functional_dropout"  # name of a layer in place of a call of a function

Layers = dict[str, nn.Module]  # by path


class UncutError(UsageError):
    """A model does not call its layers one after the other."""


class CutModel:
    """Build the stages and the head of one backbone or branch from the parts of one model.

    Args:
        parts: layers of the stem, of each stage and of the head; each part is used once.
        channels: channels of the output of the stem and of each stage.
        strides: strides of the stem and of each stage.
        name: timm's name of the model, for errors.
    """

    def __init__(self, parts: list[Layers], channels: Sequence[int], strides: Sequence[int], name: str) -> None:
        self.parts = parts
        self.channels = channels
        self.strides = strides
        self.name = name

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        """Return the model's stage, or for other input channels or stride the layers after its last shrinking one."""
        layers = self.parts[stage]
        if in_channels == self.channels[stage - 1] and stride == self.strides[stage]:
            return in_sequence(layers)
        return last_stage_repeated([*layers.values()], self.channels[stage - 1], in_channels, self.name)

    def make_head(self, num_outputs: int) -> nn.Module:
        """Return the model's head, with a new last layer if its number of outputs differs."""
        head: Any = in_sequence(self.parts[-1])
        if num_outputs != head[-1].out_features:
            head[-1] = nn.Linear(head[-1].in_features, num_outputs)  # as timm's reset_classifier does
        return head


def cut(model: Any) -> list[Layers]:
    """Return a model's layers in parts: stem, stages and the head, which ends in the linear layer.

    Stage 1 is the tapped layer alone, a later stage is everything up to its tap. The model loses its classifier.
    """
    taps = [info["module"] for info in model.feature_info][-STAGES:]
    classifier = model.pretrained_cfg["classifier"]
    if not isinstance(classifier, str):
        raise UsageError(f"it has {len(classifier)} classifiers")
    linear = model.get_submodule(classifier)
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"its classifier is a {type(linear).__name__}")
    model.set_submodule(classifier, nn.Identity())
    parts: list[Layers] = [{}]
    for path, layer in layers_of(model, taps):
        if path == taps[0]:
            parts.append({})
        if path != classifier:
            parts[-1][path] = layer
        if path in taps:
            parts.append({})
    parts[-1][classifier.rpartition(".")[2]] = linear
    return parts


def layers_of(module: nn.Module, taps: list[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module's layers with their paths; a layer that contains a tap is replaced by its own layers."""
    for name, layer in module.named_children():
        if any(tap.startswith(f"{prefix}{name}.") for tap in taps):
            yield from layers_of(layer, taps, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def in_sequence(layers: Layers) -> nn.Sequential:
    """Return the layers as a sequence with their paths as keys."""
    layers_below: dict[str, Layers] = {}
    for path, layer in layers.items():
        name, _, path_below = path.partition(".")
        layers_below.setdefault(name, {})[path_below] = layer
    children: Layers = {}
    for name, below in layers_below.items():
        children[name] = below[""] if "" in below else in_sequence(below)
    return named(**children)


def measured_parts(model: Any, name: str) -> tuple[list[Layers], list[int], list[int]]:
    """Return a model's parts, and the output channels and the strides of stem and stages.

    Raises UncutError unless the parts, one after the other, give the model's own logits of an image, in training mode
    too: with equal seeds, dropout that the model calls as a function drops the same values.
    """
    modes = {layer: layer.training for layer in model.modules()}
    try:
        parts, maps = _cut_and_run(model)
    except UsageError as error:
        reason = str(error)
    except Exception as error:  # layers that are not called in this way can raise anything
        reason = f"its layers are not called one after the other: {' '.join(str(error).split()):.100}"
    else:
        for layer, mode in modes.items():
            layer.training = mode
        channels = [feature_map.shape[1] for feature_map in maps[1:]]
        strides = [before.shape[-1] // after.shape[-1] for before, after in pairwise(maps)]
        return parts, channels, strides
    raise UncutError(
        f"timm:{name} cannot be cut into {STAGES} stages, which branches need ({reason}): {WITHOUT_BRANCHES}"
    )


@torch.no_grad()
def _cut_and_run(model: Any) -> tuple[list[Layers], list[Tensor]]:
    """Cut a model, and return its parts and an image with the maps that stem and stages make of it.

    Raises UsageError if the maps or the logits are not those of the model itself.
    """
    channels = [info["num_chs"] for info in model.feature_info][-STAGES:]
    images = _example_images(model)
    pair = torch.cat((images, images.flip(3)))  # norms refuse to train on a single image
    expected_logits = model.eval()(images.clone())
    expected_training = in_training(model, pair)
    parts = cut(model)
    for layer in (layer for layers in parts for layer in layers.values()):
        layer.eval()
    maps = [images]
    copies = [images.clone()]
    for layers in parts[:-1]:
        feature_map = in_sequence(layers)(maps[-1])
        maps.append(feature_map)
        copies.append(feature_map.clone())
    if [feature_map.shape[1] for feature_map in maps[2:]] != channels or maps[-1].dim() != 4:
        raise UsageError(f"its maps are {tuple(maps[-1].shape)}, not (B, {channels[-1]}, H, W)")
    logits = in_sequence(parts[-1])(maps[-1])
    changed_in_place = not all(map(torch.equal, maps, copies))
    if changed_in_place or not torch.allclose(logits, expected_logits):
        raise UsageError("its layers, one after the other, give other logits")
    for dropout in (0.0, getattr(model, "drop_rate", 0.0)):
        parts[-1] = with_dropout(parts[-1], dropout)
        whole = nn.Sequential(*map(in_sequence, parts))
        if torch.allclose(in_training(whole, pair), expected_training, rtol=1e-4, atol=1e-5):
            return parts, maps
    raise UsageError("its layers, one after the other, give other logits in training")


def in_training(module: nn.Module, images: Tensor) -> Tensor:
    """Return what a module computes in training mode, from a fixed seed; its buffers keep their values."""
    buffers = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        output: Tensor = module.train()(images.clone())
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return output


def with_dropout(head: Layers, probability: float) -> Layers:
    """Return the layers of a head with dropout before the last, for a model that calls it as a function."""
    if not probability:
        return head
    *others, (path, linear) = head.items()
    return {**dict(others), DROPOUT: nn.Dropout(probability), path: linear}


def _example_images(model: Any) -> Tensor:
    """Return one image that a model accepts, large enough for all its strides."""
    config = model.pretrained_cfg
    size = max(LEAST_SIZE, 2 * model.feature_info[-1]["reduction"])
    channels = config["input_size"][0]
    shape = config["input_size"] if config.get("fixed_input_size") else (channels, size, size)
    return torch.linspace(-2, 2, prod(shape)).view(1, *shape)


@torch.no_grad()
def last_stage_repeated(layers: list[nn.Module], in_channels: int, out_channels: int, name: str) -> nn.Sequential:
    """Return the layers after the last one in the last stage that shrinks the map, for maps of ``out_channels``.

    Raises UsageError if nothing with weights follows.

    Args:
        layers: the layers of the last stage.
        in_channels: channels of the maps that the stage is made for.
        out_channels: channels of its output; a convolution and a norm adapt them where they differ.
        name: timm's name of the model.
    """
    features = torch.linspace(-1, 1, 64 * in_channels).view(1, in_channels, 8, 8)
    modes = {part: part.training for layer in layers for part in layer.modules()}
    try:
        kept, channels = _after_last_shrinking(layers, features)
    except Exception:  # layers that are not called in this way can raise anything
        kept = []
    for part, mode in modes.items():
        part.training = mode
    if not any(True for layer in kept for _ in layer.parameters()):
        raise UsageError(
            f"timm:{name} can have no branches, nothing in its last stage keeps the map's size: {WITHOUT_BRANCHES}"
        )
    if channels != out_channels:
        kept = [conv1x1(out_channels, channels), nn.BatchNorm2d(channels), *kept]
    return nn.Sequential(*kept)


def _after_last_shrinking(layers: list[nn.Module], features: Tensor) -> tuple[list[nn.Module], int]:
    """Return the layers after the last one that shrinks the map, and the channels of their input.

    A layer that shrinks the map counts as its own layers, one after the other; raises ValueError if these give another
    map.
    """
    chain: list[nn.Module] = []
    expected = features.clone()
    for layer in layers:
        result = layer.eval()(expected)
        keeps_size = result.shape[2:] == expected.shape[2:]
        chain += [layer] if keeps_size else [*layer.children()] or [layer]
        expected = result
    kept: list[nn.Module] = []
    channels = 0
    feature_map = features
    for layer in chain:
        result = layer(feature_map)
        if result.shape[2:] != feature_map.shape[2:]:
            kept = []
        else:
            if not kept:
                channels = feature_map.shape[1]
            kept.append(layer)
        feature_map = result
    pair = torch.cat((features, features.flip(3)))
    trained, expected_trained = (in_training(nn.Sequential(*parts), pair) for parts in (chain, layers))
    if not torch.allclose(feature_map, expected) or not torch.allclose(trained, expected_trained, rtol=1e-4, atol=1e-5):
        raise ValueError("the layers of a shrinking layer are not called one after the other")
    return kept, channels
