"""A network under fake quantisation: it computes in floating point what its int8 ONNX file computes in integers.

The quantisers are where onnxruntime places them in the file that is exported, and round to the numbers of that file.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export.checkpoint import Trained
from hsakd_pl.export.formats import Grid, first_words, quantise
from hsakd_pl.export.pictures import as_input
from hsakd_pl.export.placement import place, read_placement
from hsakd_pl.export.quantisers import grids_of
from hsakd_pl.export.rewriting import Rewriting
from hsakd_pl.export.student import Student
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.weights import describe

Range = tuple[float, float]  # smallest and largest value of an activation


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
            program, placement = place(student)
            rewriting = Rewriting(program, placement)
            self.graph = rewriting.graph_module()
        except (LookupError, ValueError, UsageError) as error:
            raise _unsupported(network, error.__cause__ or error) from error
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
    try:
        quantise_by(trained.ranges, path, as_input(zeros, input))
    except LookupError as error:
        raise UsageError(
            f"int8: {trained.path} has the ranges of {len(trained.ranges)} activations, but other ones are quantised "
            "here: export with the versions of PyTorch, onnx and onnxruntime that it was trained with"
        ) from error


def quantise_by(ranges: Mapping[str, Range], path: Path, example: Tensor) -> Path:
    """Write ``model.int8.onnx`` next to a graph with the ranges of its activations, and return its path.

    The names of the graph may have other numbers than those of the one that was trained, which has more outputs: the
    activations of a kind are taken in their order. Raises LookupError if the graph has others.

    Args:
        ranges: range of each activation.
        path: the graph.
        example: images that the graph takes.
    """
    placed = sorted({*read_placement(quantise(path, example)).activations.values()}, key=_kind_and_numbers)
    trained = sorted(ranges, key=_kind_and_numbers)
    if [_kind_and_numbers(name)[0] for name in placed] != [_kind_and_numbers(name)[0] for name in trained]:
        raise LookupError(f"{len(trained)} ranges for {len(placed)} activations")
    own_names = dict(zip(trained, placed, strict=True))
    return quantise(path, example, grids({own_names[name]: values for name, values in ranges.items()}))


def _kind_and_numbers(activation: str) -> tuple[str, list[int]]:
    """Return the name of an activation without its numbers, and the numbers, which increase along the graph."""
    return re.sub(r"\d+", "", activation), [int(number) for number in re.findall(r"\d+", activation)]


def _unsupported(network: Network, error: BaseException) -> UsageError:
    reason = first_words(error) if isinstance(error, Exception) else ""
    return UsageError(
        f"network: {network.name or describe(network)} cannot be trained for int8 ({reason}): train it without "
        "QuantizationAware"
    )
