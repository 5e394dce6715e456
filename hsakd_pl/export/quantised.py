"""A network under fake quantisation: it computes in floating point what its int8 ONNX file computes in integers.

The quantisers are where onnxruntime places them in the file that is exported, and round to the numbers of that file.
"""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export.checkpoint import Trained
from hsakd_pl.export.formats import OUTPUT, GraphError, Grid, as_onnx, first_words, quantise, trace
from hsakd_pl.export.pictures import as_input
from hsakd_pl.export.quantisers import ActivationQuantiser, QuantisedLayer, grids_of
from hsakd_pl.export.student import Student
from hsakd_pl.files.hub import GRAPH_FILE
from hsakd_pl.files.runtimes import import_library
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.weights import describe

Range = tuple[float, float]  # smallest and largest value of an activation

ATEN = torch.ops.aten
NORM = ATEN._native_batch_norm_legit_no_training.default
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
VIEWS = (ATEN.view.default, ATEN._unsafe_view.default)
SPLITS = (ATEN.split.Tensor, ATEN.split_with_sizes.default)
# Operators that only move values, which remain on the grid of their input
MOVES = (*VIEWS, *SPLITS, ATEN.transpose.int, ATEN.permute.default)
PREFIX = "student.network."  # of the network's weights in a graph


class Placement(NamedTuple):
    """Where an int8 ONNX file quantises.

    Args:
        activations: for each quantised activation the one whose grid it has; most have their own.
        weights: for each weight with 8 bits, by its path in the network, the activation that it is applied to.
    """

    activations: dict[str, str]
    weights: dict[str, str]


def read_placement(path: Path) -> Placement:
    """Read where an int8 ONNX file that onnxruntime wrote quantises; raises ValueError for what is not supported."""
    graph = import_library("onnx").load(str(path)).graph
    constants = {constant.name for constant in graph.initializer}
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    activations = {
        node.input[0].removesuffix("_QuantizeLinear_Input"): node.input[1].removesuffix("_scale")
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    weights: dict[str, str] = {}
    used: set[str] = set()
    for node in graph.node:
        sources = [dequantised.get(name) for name in node.input]
        if node.op_type not in ("Conv", "Gemm") or None in sources[:2]:
            continue
        source, weight, *bias = [source for source in sources if source is not None]
        weights[_path_of(weight.input[0])] = source.input[1].removesuffix("_scale")
        used |= {constant.input[0] for constant in (weight, *bias)}
    others = [node.input[0] for node in dequantised.values() if node.input[0] in constants - used]
    if others:
        raise ValueError(f"{others[0]:.80} is quantised, which is not the weight of a convolution or linear layer")
    return Placement(activations, weights)


def _path_of(constant: str) -> str:
    return constant.removesuffix("_quantized").removeprefix(PREFIX)


class Traced(nn.Module):
    """Return the logits of a student, the normalised images, and the other outputs of its network."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = self.student.normalised(images)
        outputs = self.student.network.outputs(normalised)
        return (outputs.logits, normalised, *_other_tensors(outputs))


def _other_tensors(outputs: NetworkOutput) -> list[Tensor]:
    others = [*outputs.features, outputs.embedding, outputs.pooled_map]
    return [tensor for tensor in others if tensor is not None]


class QuantisedNetwork:
    """Compute the outputs of a network without branches under fake quantisation, with its own weights.

    Each weight is rounded to 8 bits with a scale per output channel, and each activation that the int8 file
    quantises to 8 bits of its range. Norms use their running statistics, and are folded into the convolutions before
    them where the file has them folded. Gradients pass through the rounding, except outside of a range.

    Raises UsageError if the network cannot be traced or quantised.

    Args:
        network: network without branches; its weights are looked up in each call.
        description: description of its data.

    Examples:
        >>> network = create_network("resnet8", 2, branches=False)
        >>> description = Description(["cat", "dog"], 8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> quantised = QuantisedNetwork(network, description)  # doctest: +SKIP
        >>> quantised(torch.randn(4, 3, 8, 8)).logits.shape  # doctest: +SKIP
        torch.Size([4, 2])
    """

    def __init__(self, network: Network, description: Description) -> None:
        self.network = network
        student = Student(copied(network).cpu(), **description.saved())
        self.shapes = student.network.shapes(description.image_size)
        try:
            program, placement = _place(student)
            rewriting = Rewriting(program, placement)
            self.graph = rewriting.graph_module()
        except GraphError as error:
            raise _unsupported(network, error.__cause__ or error) from error
        except (LookupError, ValueError) as error:
            raise _unsupported(network, error) from error
        self.sources = rewriting.sources
        self.quantisers = rewriting.quantisers
        self.constants = {name: tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}

    def __call__(self, images: Tensor) -> NetworkOutput:
        """Return the outputs for normalised images (B, C, S, S)."""
        if self.graph.training != self.network.training:
            self.graph.train(self.network.training)
        logits, *others = self.graph(*map(self._tensor, self.sources), images)
        features = [others.pop(0) for _ in self.shapes.features]
        embedding = None if self.shapes.embedding is None else others.pop(0)
        pooled_map = None if self.shapes.pooled_map is None else others.pop(0)
        return NetworkOutput(logits, [], features, embedding, pooled_map)

    def _tensor(self, path: str) -> Tensor:
        if path in self.constants:
            return self.constants[path].to(next(self.network.parameters()).device)
        module, _, name = path.rpartition(".")
        tensor: Tensor = getattr(self.network.get_submodule(module), name)
        return tensor

    @property
    def ranges(self) -> dict[str, Range]:
        """The range of each activation, by its name in the ONNX file; empty before the first step."""
        known = {name: quantiser.range for name, quantiser in self.quantisers.items()}
        return {name: (float(value[0]), float(value[1])) for name, value in known.items() if value is not None}

    def set_ranges(self, ranges: Mapping[str, Range]) -> None:
        """Set the range of each activation; raises UsageError if others are quantised here."""
        if not ranges:
            return  # of a checkpoint before the first step
        if ranges.keys() != self.quantisers.keys():
            raise UsageError(
                f"QuantizationAware: the checkpoint has the ranges of {len(ranges)} activations, but other ones are "
                "quantised here: resume with the versions of PyTorch, onnx and onnxruntime that it was trained with"
            )
        device = next(self.network.parameters()).device
        for name, quantiser in self.quantisers.items():
            quantiser.set_range(torch.tensor(ranges[name], device=device))

    @torch.no_grad()
    def update(self, momentum: float, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the ranges towards those of the last batch.

        Args:
            momentum: part of the way.
            reduce: return the smallest of these values (n, 2) over all devices.
        """
        if any(quantiser.batch_range is None for quantiser in self.quantisers.values()):
            return  # the network was not called
        signs = torch.tensor([1, -1], device=next(self.network.parameters()).device)
        seen = torch.stack([quantiser.batch_range for quantiser in self.quantisers.values()])  # type: ignore[misc]
        batch_ranges = reduce(seen * signs) * signs
        for quantiser, batch_range in zip(self.quantisers.values(), batch_ranges, strict=True):
            current = quantiser.range
            quantiser.set_range(batch_range if current is None else current.lerp(batch_range, momentum))
            quantiser.batch_range = None


def grids(ranges: Mapping[str, Range]) -> dict[str, Grid]:
    """Return the grid of each activation from its range."""
    scales, zero_points = grids_of(*torch.tensor([*ranges.values()]).unbind(1))
    values = zip(scales.tolist(), zero_points.tolist(), strict=True)
    return {name: Grid(*grid) for name, grid in zip(ranges, values, strict=True)}


def quantise_trained(path: Path, trained: Trained, input: str) -> None:
    """Write ``model.int8.onnx`` next to the graph of a student that was trained for int8, with its ranges.

    Raises UsageError if these are not the ranges of the activations that the file quantises.

    Args:
        path: the graph.
        trained: the student.
        input: input of the graph, ``float`` or ``uint8``.
    """
    student = trained.student
    zeros = torch.zeros(2, student.channels, student.image_size, student.image_size, dtype=torch.uint8)
    int8_path = quantise(path, as_input(zeros, input), grids(trained.ranges))
    placed = read_placement(int8_path)
    if {*placed.activations.values()} != trained.ranges.keys():
        raise UsageError(
            f"int8: {trained.path} has the ranges of {len(trained.ranges)} activations, but other ones are quantised "
            "here: export with the versions of PyTorch, onnx and onnxruntime that it was trained with"
        )


def _unsupported(network: Network, error: BaseException) -> UsageError:
    reason = first_words(error) if isinstance(error, Exception) else ""
    return UsageError(
        f"network: {network.name or describe(network)} cannot be trained for int8 ({reason}): train it without "
        "QuantizationAware"
    )


def _place(student: Student) -> tuple[ExportedProgram, Placement]:
    """Return the graph of a student, and where onnxruntime quantises it.

    The names of the activations are those of the graph's nodes. The weights of the file are not used.
    """
    side = student.image_size
    example = torch.rand(2, student.channels, side, side, generator=torch.Generator().manual_seed(0))
    onnx_program = as_onnx(student, trace(student, example, Traced(student)))
    model = onnx_program.model_proto
    del model.graph.output[1:]
    with TemporaryDirectory() as folder:
        path = Path(folder, GRAPH_FILE)
        path.write_bytes(model.SerializeToString())
        placement = read_placement(quantise(path, example))
    return onnx_program.exported_program, placement


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
        function: Any = layer.target
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
