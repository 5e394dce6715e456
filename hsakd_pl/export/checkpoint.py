"""Read the student of a checkpoint or of a published weight file."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.student import Student
from hsakd_pl.files import local_path
from hsakd_pl.files.weights import StateDict, read_weights, unwrap, weights_digest
from hsakd_pl.networks import Network, as_network, create_network
from hsakd_pl.networks.bounded import limited_by
from hsakd_pl.networks.keys import has_keys, split_peers
from hsakd_pl.networks.registry import trusted
from hsakd_pl.networks.weights import load_weights
from hsakd_pl.records.formats import QUANTISATION, check_checkpoint


class Trained(NamedTuple):
    """A trained student.

    Args:
        student: the student.
        path: file that it was read from.
        epoch: number of epochs it was trained for, if the file states it.
        peer: number of the peer, from 1, if there are several.
        digest: digest of all weights in the file, those of branches and other peers included.
        ranges: smallest and largest value of each activation, by its name in the ONNX file, if the student was trained
            for int8; otherwise empty.
    """

    student: Student
    path: Path
    epoch: int | None
    peer: int | None
    digest: str
    ranges: Mapping[str, tuple[float, float]]


def student_from_checkpoint(
    checkpoint: str | Path,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
) -> Student:
    """Return the student, or teacher, of a checkpoint; the data and files that it was trained with are not needed.

    Arguments and errors: :func:`read_trained`.

    Examples:
        >>> student = student_from_checkpoint("runs/student/last.ckpt")  # doctest: +SKIP
    """
    return read_trained(checkpoint, network, description, peer).student


def read_trained(
    checkpoint: str | Path,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
    data: ImageDataModule | None = None,
) -> Trained:
    """Read the student of a checkpoint of any module, of a run, or of a weight file.

    Raises UsageError for what is missing, and for weights that do not fit.

    Args:
        checkpoint: checkpoint, folder of a run (its ``last.ckpt``), or weight file.
        network: registered name, or a network that the weights are loaded into, if the file does not name one.
        description: description of the data; by default that of the file, or else that of ``data``.
        peer: number of the peer, from 1; by default that of the best accuracy.
        data: data module of the student's data.
    """
    path = local_path("checkpoint", checkpoint)
    if path.is_dir():
        path = path / "last.ckpt"
    content = read_weights(path)
    saved = content if isinstance(content, Mapping) else {}
    if "pytorch-lightning_version" in saved:
        check_checkpoint(saved, str(path))
    weights = unwrap(content, str(path))
    parts = split_peers(weights)
    if peer is not None and len(parts) == 1:
        raise UsageError(f"peer {peer} has no effect: {path} contains one network; leave peer out")
    if peer is None and len(parts) > 1:
        peer = _best_peer(saved, len(parts))
        rank_zero_info(f"{path} contains {len(parts)} peers; peer {peer} is used (choose another by peer)")
    index = 0 if peer is None else peer - 1
    require(0 <= index < len(parts), "peer", peer, f"a number from 1 to {len(parts)}")
    if network is None:
        network = trusted(_network_name(saved, index), str(path))
    if not isinstance(network, str | nn.Module):
        raise UsageError(f"{path} does not name its network: give network, a registry name or the network itself")
    description = _described(saved, description, data, path)
    if isinstance(network, str):
        with limited_by(path):
            classes = len(description.class_names)
            network = create_network(network, classes, branches=False, channels=description.channels)
    part = parts[index]
    load_weights(
        network, _as_classifier(part, network, description.channels) if _is_probe(saved, part, network) else part
    )
    student = Student(
        network, **description.saved(), transforms=_transforms_name(saved, index), embedding="embedding" in saved
    )
    epoch = saved["epoch"] + 1 if "pytorch-lightning_version" in saved else None
    [*ranges] = saved.get(QUANTISATION, [])
    return Trained(
        student,
        path,
        epoch,
        peer if len(parts) > 1 else None,
        weights_digest(weights),
        ranges[index] if index < len(ranges) else {},
    )


def _described(
    saved: Mapping[str, Any], description: Description | None, data: ImageDataModule | None, path: Path
) -> Description:
    """Return the given description, or that of the checkpoint, or of the data; numbers name an embedding's parts."""
    if description is None and "data" in saved:
        description = read_description(saved["data"], str(path))
    elif description is None and data is not None:
        description = data.description
    if description is None:
        raise UsageError(
            f"{path} does not describe its data: give description=hsakd_pl.data.Description(...) or data, or name a "
            "checkpoint or an export"
        )
    names = [str(number) for number in range(saved.get("embedding", 0))]
    return replace(description, class_names=names) if names else description


def _network_name(saved: Mapping[str, Any], index: int) -> Any:
    """Return the name of a peer's network that a checkpoint states, if any."""
    options = saved.get("hyper_parameters", {})
    options = options if isinstance(options, Mapping) else {}
    names = saved.get("networks") or options.get("networks") or []
    name = names[index] if isinstance(names, list | tuple) and index < len(names) else None
    return name or options.get("network")


def _transforms_name(saved: Mapping[str, Any], index: int) -> str | None:
    """Return the name of a peer's transformations that a checkpoint states, if any."""
    described = saved.get("transforms", [])
    if not isinstance(described, list | tuple) or index >= len(described):
        return None
    return str(described[index]).partition(" ")[2]  # their number comes first


def _best_peer(saved: Mapping[str, Any], count: int) -> int:
    """Return the number of the peer with the best validation accuracy in a callback's state; 1 if there is none."""
    metrics: Mapping[str, Any] = {}
    callbacks = saved.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(state.get("metrics"), Mapping):
            metrics = state["metrics"]
            break

    def accuracy(number: int) -> float:
        value = metrics.get(f"val/peer{number}_acc")
        return value if isinstance(value, int | float) else 0

    return max(range(1, count + 1), key=accuracy)


def _is_probe(saved: Mapping[str, Any], weights: StateDict, network: nn.Module) -> bool:
    """Return whether weights are those of a linear probe: as a checkpoint states, otherwise by their keys.

    Checkpoints of earlier versions state it by an option that no other module has.
    """
    if "probe" in saved:
        return bool(saved["probe"])
    if "pytorch-lightning_version" in saved:
        return "source_classes" in saved.get("hyper_parameters", {})
    of_probe = all(key.startswith(("features.", "classifier.")) for key in weights)
    return of_probe and "classifier.weight" in weights and not has_keys(network, weights)


def _as_classifier(weights: StateDict, network: nn.Module, channels: int) -> StateDict:
    """Return a linear probe's weights as those of the probed network, its classifier in place of the last layer."""
    num_classes = len(weights["classifier.weight"])
    prefix = "features." if isinstance(network, Network) else "features.network."
    probe = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    for layer in chain(*as_network(network, num_classes, channels).output_layers[:1]):
        path = layer if isinstance(network, Network) else layer.removeprefix("network.")
        for parameter in ("weight", "bias"):
            shape = network.get_parameter(f"{path}.{parameter}").shape
            probe[f"{path}.{parameter}"] = weights[f"classifier.{parameter}"].view(shape)  # that of a 1x1 convolution
    return probe
