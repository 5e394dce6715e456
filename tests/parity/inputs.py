"""Inputs of the recordings: drawn by rule from a seed, or stored as integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROTATIONS = 4
UNIT = 2.0**-18  # of which the inputs of the newer methods are multiples


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def labels(seed: int, num_classes: int, count: int) -> np.ndarray:
    """Return labels (count,)."""
    return np.random.default_rng(seed).integers(0, num_classes, count)


def loss_inputs(meta: dict[str, Any]) -> dict[str, Tensor]:
    """Return the targets (B,) and the logits (4B, N) and (4B, 4N), rows image by image, of the recorded losses."""
    images, num_classes = meta["B"], meta["C"]
    inputs = {"targets": labels(meta["seeds"]["targets"], num_classes, images)}
    for name, seed in meta["seeds"].items():
        if name != "targets":
            columns = ROTATIONS * num_classes if "ss_" in name else num_classes
            inputs[name] = normal(seed, ROTATIONS * images, columns) * meta["scale_of_standard_normal"]
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def metric_inputs(meta: dict[str, Any]) -> dict[str, Tensor]:
    """Return the targets (B,) and both networks' logits, which favour the right class, of the recorded metrics."""
    images, num_classes = sum(meta["batches"]), meta["C"]
    targets = labels(meta["seeds"]["targets"], num_classes, images)
    rows = np.arange(ROTATIONS * images)
    joint_labels = ROTATIONS * targets.repeat(ROTATIONS) + rows % ROTATIONS
    inputs = {"targets": targets}
    for network in ("net1", "net2"):
        seeds = meta["seeds"][network]
        logits = normal(seeds["logits"], len(rows), num_classes)
        logits[rows, targets.repeat(ROTATIONS)] += 1.0
        inputs[f"{network}_logits"] = logits
        for branch, seed in enumerate(seeds["ss_logits"]):
            joint_logits = normal(seed, len(rows), ROTATIONS * num_classes)
            joint_logits[rows, joint_labels] += 1 + 0.5 * branch
            inputs[f"{network}_ss_logits_{branch}"] = joint_logits
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def method_inputs(seed: int, draws: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
    """Return the inputs of one recording of methods, all drawn one after the other from one generator.

    Args:
        seed: seed of the generator.
        draws: name, kind, shape and two parameters of each draw: ``normal`` (factor, shift), ``uniform`` (lowest,
            highest), ``integers`` (end, unused), ``permutation`` (end, unused), of which the first numbers are taken,
            or ``contrasts`` (end, name of the draw that gives the first column).
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for name, kind, shape, first, second in draws:
        if kind == "normal":
            inputs[name] = generator.standard_normal(shape) * first + second
        elif kind == "uniform":
            inputs[name] = generator.uniform(first, second, shape)
        elif kind == "permutation":
            inputs[name] = generator.permutation(first)[: shape[0]]
        else:
            inputs[name] = generator.integers(0, first, shape)
        if kind == "contrasts":
            inputs[name][:, 0] = inputs[second]
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def as_integers(array: np.ndarray) -> dict[str, Any]:
    """Return an array of integers, or of multiples of `UNIT`, as what `from_integers` reads."""
    unit = 1 if array.dtype.kind in "iu" else UNIT
    return {"shape": list(array.shape), "unit": unit, "integers": np.rint(array / unit).astype(int).ravel().tolist()}


def from_integers(entry: dict[str, Any]) -> Tensor:
    """Return a stored array: int64, or float64 where its unit is not 1."""
    integers = torch.tensor(entry["integers"]).reshape(entry["shape"])
    return integers if entry["unit"] == 1 else integers.double() * entry["unit"]
