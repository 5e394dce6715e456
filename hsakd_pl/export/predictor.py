"""Predict with an export: in a runtime, at a temperature, or with early exits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError
from hsakd_pl.export.calibration import (
    Calibration,
    calibrated_logits,
    calibration_next_to,
    check_exits,
    exits_of_export,
    network_with_branches,
    read_calibration,
)
from hsakd_pl.export.checkpoint import read_trained
from hsakd_pl.export.student import load_student, read_config, transforms_of_package
from hsakd_pl.files import local_path, naming
from hsakd_pl.files.hub import CONFIG_FILE, GRAPH_FILE
from hsakd_pl.files.runtimes import TORCH, open_graph
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.modules import BaselineModule
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.networks import Network
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.ops import Transforms
from hsakd_pl.records.predictions import DIGITS


class GraphNetwork(Network):
    """An ONNX file as a network: images (B, C, S, S) in [0, 1] -> logits (B, N), on the CPU.

    Args:
        run: runs the file.
        num_classes: number of classes N.
        channels: number of channels C.
        transforms: transformations that ``predict`` compares.
        takes_uint8: the file takes uint8 from 0 to 255.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        num_classes: int,
        channels: int,
        transforms: Transforms,
        takes_uint8: bool = False,
    ) -> None:
        super().__init__(num_classes, transforms)
        self.in_channels = channels
        self.run = run
        self.takes_uint8 = takes_uint8

    def forward(self, images: Tensor) -> Tensor:
        if self.takes_uint8:
            images = images.mul(255).round().to(torch.uint8)
        return torch.from_numpy(self.run(images.contiguous().numpy()))


class Predictor(BaselineModule):
    """A network that predicts with calibrated probabilities.

    Args:
        network: network without branches.
        calibration: its calibration, None for probabilities as they are.
        exits: the network with branches, for the early exits of the calibration.
    """

    def __init__(self, network: Network, calibration: Calibration | None, exits: HSAKDNet | None = None) -> None:
        super().__init__(network, fast=not isinstance(network, GraphNetwork))
        self.predictions_digest: str | None = None  # of the weights, where the network does not hold them
        self.temperature = 1.0 if calibration is None else calibration.temperature
        self.operation = None if calibration is None else calibration.exits
        self.exits = None if exits is None else Frozen(exits)
        if exits is not None and self.operation is not None:
            check_exits(exits, self.operation)

    def classify(self, peer: int, images: Tensor) -> Tensor:
        """Return the scaled class logits (B, N) of images (B, 3, S, S)."""
        if self.exits is not None and self.operation is not None:
            return calibrated_logits(self.exits.network, self.operation, images.clone())
        return super().classify(peer, images) / self.temperature


class Source(NamedTuple):
    """A module for predictions, and the preprocessing of its pictures.

    Args:
        predictor: the module.
        description: classes and preprocessing of its pictures.
        how: description of the runtime, the file and the calibration.
    """

    predictor: Predictor
    description: Description
    how: str


def find_source(source: str, runtime: str, network: str | None = None) -> Source:
    """Return what predicts: the folder of an export or of a run, a checkpoint, or an ONNX file of an export.

    Raises UsageError for what is missing, and for a runtime that cannot run the source.
    """
    path = local_path("SOURCE", source)
    with naming(path):
        is_file = path.is_file()
    if is_file and path.suffix == ".onnx":
        if runtime == TORCH:
            runtime = "onnxruntime"
        return _graph_source(path.parent, path.name, runtime)
    with naming(path):
        is_export = (path / CONFIG_FILE).is_file()
    if runtime != TORCH:
        if not is_export:
            raise UsageError(
                f"runtime {runtime} runs the ONNX file of an export, which {source} is not: export it first"
            )
        return _graph_source(path, GRAPH_FILE, runtime)
    if not is_export:
        trained = read_trained(path, network)
        _require_classes(trained.student.embeds, source)
        calibration = calibration_next_to(trained)
        exits = network_with_branches(trained) if calibration is not None and calibration.exits is not None else None
        predictor = Predictor(trained.student.network, calibration, exits)
        return Source(predictor, trained.student.description, _words(TORCH, calibration, exits))
    student = load_student(source, network)
    _require_classes(student.embeds, source)
    config = read_config(path / CONFIG_FILE)
    calibration = _calibration_of(config, path)
    exits = (
        exits_of_export(path, student.network) if calibration is not None and calibration.exits is not None else None
    )
    predictor = Predictor(student.network, calibration, exits)
    return Source(predictor, student.description, _words(TORCH, calibration, exits))


def _graph_source(folder: Path, name: str, runtime: str) -> Source:
    """Return an ONNX file of an export's folder in a runtime."""
    path = folder / name
    config = read_config(folder / CONFIG_FILE)
    _require_classes(config.get("embedding", False), str(folder))
    if not path.is_file():
        raise UsageError(f"{folder} has no {name}, which runtime {runtime} runs: export with the format onnx")
    description = read_description(config, str(folder / CONFIG_FILE))
    calibration = _calibration_of(config, folder)
    run = open_graph(path, runtime, torch.get_num_threads())
    transforms = transforms_of_package(config.get("transforms") or "")
    takes_uint8 = config.get("input") == "uint8"
    graph = GraphNetwork(run, len(description.class_names), description.channels, transforms, takes_uint8)
    predictor = Predictor(graph, calibration)
    digest = config.get("predictions_digest") if name == GRAPH_FILE else None
    predictor.predictions_digest = digest or file_sha256(path)[:DIGITS]
    return Source(predictor, description, _words(f"{runtime}, {name}", calibration, None))


def _require_classes(embeds: bool, source: str) -> None:
    if embeds:
        raise UsageError(
            f"{source} is an embedding network, which predicts no classes: call load_student(FOLDER)(images) in Python"
        )


def _calibration_of(config: dict[str, Any], folder: Path) -> Calibration | None:
    content = config.get("calibration")
    return None if content is None else read_calibration(content, f"the calibration in {folder / CONFIG_FILE}")


def _words(runtime: str, calibration: Calibration | None, exits: HSAKDNet | None) -> str:
    if calibration is None:
        return runtime
    if exits is not None and calibration.exits is not None:
        return f"{runtime}, {calibration.exits}"
    return f"{runtime}, temperature {calibration.temperature:g}"
