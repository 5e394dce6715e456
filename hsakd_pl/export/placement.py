"""Find the activations and weights of a student that onnxruntime stores with 8 bits in its int8 file."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.export import ExportedProgram

from hsakd_pl.export.formats import as_onnx, quantise, trace
from hsakd_pl.export.student import Student
from hsakd_pl.files.hub import GRAPH_FILE
from hsakd_pl.files.runtimes import import_library
from hsakd_pl.networks import NetworkOutput

PREFIX = "student.network."  # of the network's weights in the graph of ``Traced``


class Placement(NamedTuple):
    """Hold the activations and weights that an int8 ONNX file quantises.

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


def place(student: Student) -> tuple[ExportedProgram, Placement]:
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
