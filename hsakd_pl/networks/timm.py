"""timm's models by name: convolutional ones in stages, cut where timm taps them; others as classifiers."""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.backbone import StagedBackbone
from hsakd_pl.networks.layers import conv1x1, named
from hsakd_pl.networks.network import Classifier, Network

STAGES = 4  # after the last taps, as many as ImageNet's resnets have here: all families pair
LEAST_SIZE = 64  # pixels a side of the image that shows how a model calls its layers

Layers = dict[str, nn.Module]  # by path


def make_timm(name: str, num_classes: int, branches: bool) -> Network:
    """Make timm's model ``name`` with fresh weights: in stages where it can be cut, which ``branches`` need.

    Raises UsageError where it cannot, where timm is missing, and for a model that timm does not know.
    """
    try:
        return TimmBackbone(create_model(name, num_classes), name, num_classes)
    except Uncut:
        if branches:
            raise
        return TimmClassifier(create_model(name, num_classes), num_classes)


def create_model(name: str, num_classes: int, **options: Any) -> Any:
    """Call timm's function of this name; UsageError where timm is missing or does not know the model."""
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"timm:{name} needs timm: pip install 'hsakd_pl[timm]'") from error
    if not timm.is_model(name):
        close = [f"timm:{each}" for each in get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(f"unknown network 'timm:{name}': {hint}timm.list_models() gives all names")
    try:
        return timm.create_model(name, num_classes=num_classes, **options)
    except RuntimeError as error:
        raise UsageError(f"timm:{name} cannot be made: {error}") from error


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """Fetch the weights, of all their classes, that timm publishes for a network; its cache keeps them.

    Raises UsageError for a network that is not timm's, and where the weights cannot be had.
    """
    if not name.startswith("timm:"):
        raise UsageError(f"weights: {name} has no published weights that could be fetched: name a file of them")
    model = name.removeprefix("timm:")
    classes = create_model(model, 2).pretrained_cfg["num_classes"]
    try:
        return create_model(model, classes, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of the network, of timm
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UsageError(f"weights: those of {name} cannot be fetched ({reason}): name a file of them") from error


class Uncut(UsageError):
    """A model whose layers are not called one after the other."""


class TimmClassifier(Classifier):
    """A timm model that cannot be cut into stages: class logits alone."""

    def check_image_size(self, height: int, width: int) -> None:
        facts: Any = self.network.pretrained_cfg
        if facts.get("fixed_input_size") and (height, width) != tuple(facts["input_size"][1:]):
            wanted = " x ".join(map(str, facts["input_size"][1:]))
            raise UsageError(f"the network takes images of {wanted} pixels alone, got {height} x {width}")


class TimmBackbone(StagedBackbone):
    """A timm model whose last four taps are its stages 1..4, under timm's own keys.

    It is made of ``model``, its branches of fresh copies. The branch of the last stage is what in that stage follows
    the last layer that shrinks the map, after a 1x1 convolution and a norm where the channels differ.
    """

    def __init__(self, model: Any, name: str, num_classes: int) -> None:
        self.model_name, path = name, model.pretrained_cfg.get("classifier")
        # what nobody has taken yet of the copy that a backbone or a branch is being built of
        self.parts, channels, strides = measured_parts(model, name)
        super().__init__(in_sequence(self.parts[0]), channels, strides, num_classes)
        self.published_keys = (
            (r"^(stem|head|stages\.\d+)\.", ""),
            (rf"^{path.rpartition('.')[2]}\.", f"{path}."),  # the last layer, which timm may keep in a part of its head
        )

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        layers = self._take(stage)
        if (in_channels, stride) == (self.channels[stage - 1], self.strides[stage]):
            return in_sequence(layers)
        return last_stage_repeated([*layers.values()], self.channels[stage - 1], in_channels, self.model_name)

    def make_head(self, num_outputs: int) -> nn.Module:
        head = in_sequence(self._take(-1))
        if num_outputs != head[-1].out_features:
            head[-1] = nn.Linear(head[-1].in_features, num_outputs)  # as timm's reset_classifier does
        self.parts = []  # the head is the last to be taken
        return head

    def _take(self, part: int) -> Layers:
        self.parts = self.parts or cut(create_model(self.model_name, self.num_classes))
        return self.parts[part]


def cut(model: Any) -> list[Layers]:
    """Part a model's layers into stem, stages and the head, which ends in the linear layer.

    Stage 1 is the tapped layer alone, a later stage all up to its tap.
    """
    taps, classifier = [info["module"] for info in model.feature_info][-STAGES:], model.pretrained_cfg["classifier"]
    linear, parts = model.get_submodule(classifier), list[Layers]([{}])
    model.set_submodule(classifier, nn.Identity())
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
    """Walk over a module's layers and their paths, into those alone that hold a tap."""
    for name, layer in module.named_children():
        if any(tap.startswith(f"{prefix}{name}.") for tap in taps):
            yield from layers_of(layer, taps, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def in_sequence(layers: Layers) -> nn.Sequential:
    """Put layers into a sequence whose keys are their paths."""
    below: dict[str, Layers] = {}
    for path, layer in layers.items():
        top, _, rest = path.partition(".")
        below.setdefault(top, {})[rest] = layer
    return named(**{top: inner[""] if "" in inner else in_sequence(inner) for top, inner in below.items()})


@torch.no_grad()
def measured_parts(model: Any, name: str) -> tuple[list[Layers], list[int], list[int]]:
    """Cut a model; give its parts, and the channels and strides of stem and stages.

    Raises Uncut unless the parts, one after the other, give the model's own logits of an image.
    """
    try:
        widths = [info["num_chs"] for info in model.feature_info][-STAGES:]
        size = max(LEAST_SIZE, 2 * model.feature_info[-1]["reduction"])
        images = torch.linspace(-2, 2, 3 * size * size).view(1, 3, size, size)
        expected, maps, copies = model.eval()(images), [images], [images.clone()]
        *stages, head = parts = cut(model)
        for layers in stages:
            maps.append(in_sequence(layers)(maps[-1]))
            copies.append(maps[-1].clone())
        same = torch.allclose(in_sequence(head)(maps[-1]), expected) and all(map(torch.equal, maps, copies))
        reason = "" if same else "they give other logits"
        if [each.shape[1] for each in maps[2:]] != widths or maps[-1].dim() != 4:
            reason = f"maps of {tuple(maps[-1].shape)}, not (B, {widths[-1]}, H, W)"
    except Exception as error:  # whatever layers raise that are called otherwise
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    if reason:
        raise Uncut(
            f"timm:{name} has no branches: its layers are not called one after the other in {STAGES} stages ({reason}). "
            "Take it with branches=False, or as the teacher of a method without them (joint_kd_weight=0)"
        )
    model.train()
    strides = [before.shape[-1] // after.shape[-1] for before, after in pairwise(maps)]
    return parts, [each.shape[1] for each in maps[1:]], strides


@torch.no_grad()
def last_stage_repeated(layers: list[nn.Module], in_channels: int, out_channels: int, name: str) -> nn.Sequential:
    """Give what in the last stage follows its last layer that shrinks the map, for maps of the stage's own output.

    Raises UsageError where that is nothing.
    """
    images = torch.linspace(-1, 1, 64 * in_channels).view(1, in_channels, 8, 8)
    maps, chain = images.clone(), list[nn.Module]()
    for layer in layers:
        before, maps = maps, layer.eval()(maps)
        chain += [layer] if maps.shape[2:] == before.shape[2:] else [*layer.children()] or [layer]
    expected, maps, kept, channels = maps, images, list[nn.Module](), 0
    try:
        for layer in chain:
            before, maps = maps, layer(maps)
            kept = [*kept, layer] if maps.shape[2:] == before.shape[2:] else []
            channels = before.shape[1] if len(kept) == 1 else channels
    except Exception:  # whatever layers raise that are called otherwise
        kept = []
    if not kept or not torch.allclose(maps, expected):
        raise UsageError(
            f"timm:{name} has no branches: nothing in its last stage keeps the map's size. "
            "Take it with branches=False, or as the teacher of a method without them (joint_kd_weight=0)"
        )
    if channels != out_channels:
        kept = [conv1x1(out_channels, channels), nn.BatchNorm2d(channels), *kept]
    return nn.Sequential(*kept).train()
