"""From a checkpoint, or a published weight file, to the student in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.student import Student
from hsakd_pl.files import local_path
from hsakd_pl.files.weights import StateDict, read_weights, unwrap
from hsakd_pl.networks import Network, create_network
from hsakd_pl.networks.keys import split_peers
from hsakd_pl.networks.registry import trusted
from hsakd_pl.networks.weights import load_weights


class Trained(NamedTuple):
    """A student, the file that it is from, the epochs it had, and of several peers the number that it has (from 1)."""

    student: Student
    path: Path
    epoch: int | None
    peer: int | None


def student_from_checkpoint(
    checkpoint: str | Path,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
) -> Student:
    """Take the student, or teacher, out of a checkpoint, without the files and images that it was trained with.

    Arguments and errors: :func:`read_trained`.
    """
    return read_trained(checkpoint, network, description, peer).student


def read_trained(
    checkpoint: str | Path,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
    data: ImageDataModule | None = None,
) -> Trained:
    """Read a checkpoint of any module, a run's folder (its ``last.ckpt``), or weights alone.

    ``network``: a registry name, or a network, which gets the weights: needed where the file knows no name.
    ``description``: of the data, by default the file's own, or where it has none that of ``data``. ``peer``: number,
    from 1, of the peer that is taken, by default the one with the best accuracy. Raises UsageError for what is missing,
    and for weights that do not fit.
    """
    path = local_path("checkpoint", checkpoint)
    path = path / "last.ckpt" if path.is_dir() else path
    content = read_weights(path)
    saved = content if isinstance(content, Mapping) else {}
    options = saved.get("hyper_parameters", {})
    parts = split_peers(unwrap(content, str(path)))
    if peer is None and len(parts) > 1:
        peer = _best_peer(saved, len(parts))
        rank_zero_info(f"{path} holds {len(parts)} peers: number {peer} is taken (peer: choose another)")
    require(1 <= (peer or 1) <= len(parts), "peer", peer, f"a number from 1 to {len(parts)}")
    weights, index = parts[(peer or 1) - 1], (peer or 1) - 1
    names = [*(saved.get("networks") or options.get("networks") or []), options.get("network")]
    network = network or trusted(names[min(index, len(names) - 1)] or options.get("network"), str(path))
    if not isinstance(network, str | nn.Module):
        raise UsageError(f"{path} does not name its network: give network, a registry name or the network itself")
    if description is None and "data" in saved:
        description = read_description(saved["data"], str(path))
    elif description is None and data is not None:
        description = data.description
    if description is None:
        raise UsageError(f"{path} does not describe its data: give description=hsakd_pl.data.Description(...), or data")
    made = (
        create_network(network, len(description.class_names), branches=False) if isinstance(network, str) else network
    )
    load_weights(made, _as_classifier(weights, made))
    transforms = [str(each).partition(" ")[2] for each in saved.get("transforms", [])]  # after their number
    epoch = saved["epoch"] + 1 if "pytorch-lightning_version" in saved else None
    student = Student(made, **description.saved(), transforms=transforms[index] if index < len(transforms) else None)
    return Trained(student, path, epoch, peer if len(parts) > 1 else None)


def _best_peer(saved: Mapping[str, Any], count: int) -> int:
    """The number of the peer with the best validation accuracy that a callback remembers; 1 where none does."""
    states = [state.get("metrics") for state in saved.get("callbacks", {}).values() if isinstance(state, Mapping)]
    metrics: Any = next((each for each in states if isinstance(each, Mapping)), {})
    return max(range(1, count + 1), key=lambda number: metrics.get(f"val/peer{number}_acc") or 0)


def _as_classifier(weights: StateDict, network: nn.Module) -> StateDict:
    """Name a linear probe's weights as those of the probed network, whose last linear layer its classifier replaces."""
    if not all(key.startswith(("features.", "classifier.")) for key in weights):
        return weights
    last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    start = "features." if isinstance(network, Network) else "features.network."
    moved = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
    return moved | {f"{last}.{leaf}": weights[f"classifier.{leaf}"] for leaf in ("weight", "bias")}
