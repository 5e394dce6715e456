"""Rewrite the graph of a student as one that rounds where its int8 file does."""

import operator
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from hsakd_pl.export.formats import OUTPUT
from hsakd_pl.export.placement import PREFIX, Placement
from hsakd_pl.export.quantisers import ActivationQuantiser, QuantisedLayer
from hsakd_pl.fast import strided

ATEN = torch.ops.aten
NORM = ATEN._native_batch_norm_legit_no_training.default
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
VIEWS = (ATEN.view.default, ATEN._unsafe_view.default)
SPLITS = (ATEN.split.Tensor, ATEN.split_with_sizes.default)
# Operators that only move values, which remain on the grid of their input
MOVES = (*VIEWS, *SPLITS, ATEN.transpose.int, ATEN.permute.default)


class Rewriting:
    """Rewrite the graph of a traced student as one under quantisation, from weights and normalised images to outputs.

    Args:
        program: traced :class:`Traced`.
        placement: where its int8 file quantises.
    """

    def __init__(self, program: ExportedProgram, placement: Placement) -> None:
        self.module = GraphModule(nn.Module(), program.graph)
        self.graph = self.module.graph
        self.placement = placement
        self.nodes: dict[str, Node] = {_name_in_file(node): node for node in self.graph.nodes}
        self.paths = _paths(program)
        self.quantisers = {name: ActivationQuantiser() for name in dict.fromkeys(placement.activations.values())}
        self.keys = {quantiser: f"activation_{number}" for number, quantiser in enumerate(self.quantisers.values())}
        for quantiser, key in self.keys.items():
            self.module.add_submodule(key, quantiser)
        self.sources: list[str] = []

    def graph_module(self) -> GraphModule:
        """Return the graph as a module; raises ValueError or LookupError if it and the placement do not fit."""
        self._begin_with_normalised_images()
        self._quantise_layers()
        self._freeze_norms()
        self._round_activations()
        self._remove_unused()
        self.module.recompile()
        return self.module

    def _begin_with_normalised_images(self) -> None:
        [output] = [node for node in self.graph.nodes if node.op == "output"]
        [images] = [node for node in self.graph.nodes if node.op == "placeholder" and node.name not in self.paths]
        logits, normalised, *others = output.args[0]
        output.args = ((logits, *others),)
        with self.graph.inserting_after(images):
            entrance = self.graph.placeholder("normalised")
        normalised.replace_all_uses_with(entrance)
        images.replace_all_uses_with(entrance)  # its sizes
        self.nodes[normalised.name] = entrance
        self.logits = logits.name
        self.graph.eliminate_dead_code()
        self.graph.erase_node(images)

    def _quantise_layers(self) -> None:
        count = 0
        for layer in [node for node in self.graph.nodes if node.target in LAYERS]:
            source = self.placement.weights.get(self.paths.get(layer.args[1].name, ""))
            if source is not None:
                self._quantise_layer(layer, self.quantisers[source])
                count += 1
        if count != len(self.placement.weights):
            raise ValueError("its graph has other layers than its ONNX file")

    def _quantise_layer(self, layer: Node, source: ActivationQuantiser) -> None:
        """Replace a layer, and the norm after it if that reads nothing else, by one with a quantised weight."""
        norm, last = _norm_after(layer)
        _, *statistics, _, eps = (None, None, None) if norm is None else norm.args
        function: Any = strided.conv2d if layer.target is ATEN.conv2d.default else layer.target
        key = f"layer_{layer.name}"
        self.module.add_submodule(key, QuantisedLayer(function, source, cast(float | None, eps)))
        activation, weight, bias, *others = layer.args if len(layer.args) > 2 else (*layer.args, None)
        with self.graph.inserting_after(last):
            quantised = self.graph.call_module(key, (activation, weight, bias, others, statistics))
        last.replace_all_uses_with(quantised)
        self.nodes[last.name] = quantised
        self.graph.eliminate_dead_code()

    def _freeze_norms(self) -> None:
        """Replace norms that are not folded by an operator with a gradient, which uses their running statistics."""
        for norm in [node for node in self.graph.nodes if node.target is NORM]:
            activation, weight, bias, mean, variance, _, eps = norm.args
            [result] = norm.users
            with self.graph.inserting_after(result):
                arguments = (activation, mean, variance, weight, bias, False, 0.0, eps)
                frozen = self.graph.call_function(F.batch_norm, arguments)
            result.replace_all_uses_with(frozen)
            self.nodes[result.name] = frozen

    def _round_activations(self) -> None:
        for name, owner in self.placement.activations.items():
            node = self.nodes[self.logits if name == OUTPUT else name]
            shares = name != owner
            if shares and _only_moves(node):
                continue
            with self.graph.inserting_after(node):
                rounded = self.graph.call_module(self.keys[self.quantisers[owner]], (node, shares))
            for user in [user for user in node.users if user is not rounded]:
                user.replace_input_with(node, rounded)

    def _remove_unused(self) -> None:
        self.graph.eliminate_dead_code()
        for node in self.graph.nodes:
            if node.target in VIEWS:
                node.target = ATEN.reshape.default  # also of maps that are stored as channels_last
        for node in [node for node in self.graph.nodes if node.op == "placeholder" and node.name in self.paths]:
            if node.users:
                self.sources.append(self.paths[node.name])
            else:
                self.graph.erase_node(node)


def _paths(program: ExportedProgram) -> dict[str, str]:
    """Return the paths in the network of the weights and constants that a graph takes, by the names of its inputs."""
    signature = program.graph_signature
    tensors = (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants)
    return {name: path.removeprefix(PREFIX) for kind in tensors for name, path in kind.items()}


def _norm_after(layer: Node) -> tuple[Node | None, Node]:
    """Return the norm that alone reads the result of a convolution, if there is one, and the node of the result."""
    users = [*layer.users]
    if len(users) == 1 and users[0].target is NORM and users[0].args[0] is layer:
        [result] = users[0].users
        return users[0], result
    return None, layer


def _operation(node: Node) -> Any:
    """Return the operator that computes the value of a node, also if the node takes a part of its results."""
    [source, *_] = node.args or [None]
    is_part = node.target is operator.getitem and isinstance(source, Node)
    return source.target if is_part else node.target  # type: ignore[union-attr]


def _only_moves(node: Node) -> bool:
    """Return True if a node has values of its input in another order, or some of them."""
    return _operation(node) in MOVES


def _name_in_file(node: Node) -> str:
    """Return the name that the value of a node has in an ONNX file."""
    if node.target is operator.getitem and _operation(node) in SPLITS:
        source, part = node.args
        return f"{source}_split_{part}"
    return node.name
