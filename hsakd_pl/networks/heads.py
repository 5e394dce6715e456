"""Find the layers that return a network's logits, by what its forward pass does rather than by their order."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.networks.copies import SavedBuffers, copied

# Sides of images, one of which a network accepts: the usual ones first
SIZES = (32, 224, 64, 96, 28, 84, 128, 160, 192, 256, 299, 384, 448, 512, *range(4, 28, 4), 48, 72, 112)

PARAMETRIZATION = re.compile(r"\.parametrizations\..*")  # in the path of a parametrized layer's parameters


def output_layers(network: nn.Module, channels: int = 3) -> list[list[str]]:
    """Return the paths of the layers that return the class logits, then those of each branch.

    Logits that are computed by several layers, as by the two classifiers of a distilled transformer, have several; a
    parameter of the network itself is a path too. The result is empty if no forward pass succeeds. The network does not
    change: a copy is run on images of ``channels`` channels.
    """
    for device in ("meta", "cpu"):  # a network whose Python code depends on values does not run on the meta device
        try:
            copy = copied(network).to(device).eval()
        except Exception:  # a scripted network does not move to the meta device
            continue
        for parameter in copy.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        dtype = next((weight.dtype for weight in copy.parameters() if weight.is_floating_point()), torch.float32)
        for size in SIZES:
            images = torch.zeros(2, channels, size, size, dtype=dtype, device=device, requires_grad=True)
            try:
                with SavedBuffers(network), torch.enable_grad(), torch.random.fork_rng([]), torch.device(device):
                    output = copy(images * 1)  # which the network may change in place
            except Exception:  # a network can raise anything for images of another size or device
                continue
            return [_layers(copy, logits, images) for logits in all_logits(output)]
    return []


def is_part(key: str, layers: Collection[str]) -> bool:
    """Check whether a key of a state dict belongs to one of the layers."""
    return any(key == layer or key.startswith(f"{layer}.") for layer in layers)


def all_logits(output: Any) -> list[Tensor]:
    """Return the class logits of an output, and the joint logits of its branches."""
    if isinstance(output, Tensor):
        return [output]
    logits = getattr(output, "logits", None)
    return [logits, *getattr(output, "joint_logits", [])] if isinstance(logits, Tensor) else []


def _layers(network: nn.Module, logits: Tensor, images: Tensor) -> list[str]:
    """Return the paths of the layers whose weights make the logits, in the order of their registration."""
    weights = set(nearest_weights(logits, images))
    paths = []
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        layer = PARAMETRIZATION.sub("", name.rpartition(".")[0])
        whole = bool(layer) and all(weight in weights for key, weight in parameters.items() if is_part(key, [layer]))
        path = layer if whole else name
        if parameter in weights and path not in paths:
            paths.append(path)
    return paths


def nearest_weights(logits: Tensor, images: Tensor) -> Iterator[Tensor]:
    """Yield the parameters that logits depend on through no matrix: matrices, and their biases and scales.

    Every path from the logits back to the images ends at the first operation with a parameter of several dimensions.
    """
    if logits.grad_fn is None:
        return
    depends: dict[Any, bool] = {}
    waiting = [logits.grad_fn]
    visited = set()
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        inputs = [following for following, _ in node.next_functions if following is not None]
        parameters: list[Tensor] = []
        for following in inputs:
            if not depends_on(following, images, depends):
                parameters += leaves(following)
        yield from parameters
        if not any(parameter.dim() > 1 for parameter in parameters):
            waiting += [following for following in inputs if depends_on(following, images, depends)]


def depends_on(node: Any, images: Tensor, depends: dict[Any, bool]) -> bool:
    """Check whether the result of a node of the graph depends on the images; ``depends`` keeps the answers."""
    waiting = [node]
    while waiting:
        current = waiting[-1]
        inputs = [following for following, _ in current.next_functions if following is not None]
        unknown = [following for following in inputs if following not in depends]
        if unknown and current not in depends:
            waiting += unknown
            continue
        is_images = getattr(current, "variable", None) is images
        depends[current] = is_images or any(depends[following] for following in inputs)
        waiting.pop()
    return depends[node]


def leaves(node: Any) -> Iterator[Tensor]:
    """Yield the parameters that the result of a node is computed from."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if hasattr(current, "variable"):
            yield current.variable
        waiting += [following for following, _ in current.next_functions if following is not None]
