"""How a model of timm's is cut into a stem, stages and a head, where its ``feature_info`` taps it."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn as nn

from hsakd_pl.errors import UsageError
from hsakd_pl.networks.layers import conv1x1, named

STAGES = 4  # after the last taps, as many as ImageNet's resnets have here: all families pair
LEAST_SIZE = 64  # pixels a side of the image that shows how a model calls its layers
WITHOUT_BRANCHES = "take branches=False, or joint_kd_weight=0 where it is a teacher"

Layers = dict[str, nn.Module]  # by path


class UncutError(UsageError):
    """A model whose layers are not called one after the other."""


def cut(model: Any) -> list[Layers]:
    """Part a model's layers into stem, stages and the head, which ends in the linear layer.

    Stage 1 is the tapped layer alone, a later stage all up to its tap.
    """
    taps, classifier = [info["module"] for info in model.feature_info][-STAGES:], model.pretrained_cfg["classifier"]
    if not isinstance(classifier, str):
        raise UsageError(f"it has {len(classifier)} classifiers")
    linear, parts = model.get_submodule(classifier), list[Layers]([{}])
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"its classifier is a {type(linear).__name__}")
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

    Raises UncutError unless the parts, one after the other, give the model's own logits of an image.
    """
    try:
        widths = [info["num_chs"] for info in model.feature_info][-STAGES:]
        facts, size = model.pretrained_cfg, max(LEAST_SIZE, 2 * model.feature_info[-1]["reduction"])
        shape = facts["input_size"] if facts.get("fixed_input_size") else (3, size, size)
        images = torch.linspace(-2, 2, prod(shape)).view(1, *shape)
        expected, maps, copies = model.eval()(images), [images], [images.clone()]
        *stages, head = parts = cut(model)
        for layers in stages:
            maps.append(in_sequence(layers)(maps[-1]))
            copies.append(maps[-1].clone())
        if [each.shape[1] for each in maps[2:]] != widths or maps[-1].dim() != 4:
            raise UsageError(f"its maps are {tuple(maps[-1].shape)}, not (B, {widths[-1]}, H, W)")
        same = torch.allclose(in_sequence(head)(maps[-1]), expected) and all(map(torch.equal, maps, copies))
        reason = "" if same else "its layers, one after the other, give other logits"
    except UsageError as error:
        reason = str(error)
    except Exception as error:  # whatever layers raise that are called otherwise
        reason = f"its layers are not called one after the other: {' '.join(str(error).split()):.100}"
    if reason:
        raise UncutError(
            f"timm:{name} cannot be cut into {STAGES} stages, which branches need ({reason}): {WITHOUT_BRANCHES}"
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
    if not any(True for layer in kept for _ in layer.parameters()) or not torch.allclose(maps, expected):
        raise UsageError(
            f"timm:{name} can have no branches, nothing in its last stage keeps the map's size: {WITHOUT_BRANCHES}"
        )
    if channels != out_channels:
        kept = [conv1x1(out_channels, channels), nn.BatchNorm2d(channels), *kept]
    return nn.Sequential(*kept).train()
