"""Calibrate a trained student on its validation images."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.augment import normalise
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.calibration import (
    EXITS,
    Calibration,
    Operation,
    choose,
    fit_temperature,
    network_with_branches,
    operations,
    write_calibration,
)
from hsakd_pl.export.checkpoint import Trained, read_trained
from hsakd_pl.export.pictures import evenly_spaced
from hsakd_pl.files import local_path
from hsakd_pl.networks.cost import multiply_adds_until
from hsakd_pl.networks.exits import exit_logits
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.records.formats import RESULT_FILE, read_row

MOST_IMAGES = 10_000  # validation images whose logits are kept


@torch.no_grad()
def calibrate(
    checkpoint: str | Path,
    data: ImageDataModule,
    target_accuracy: float | None = None,
    target_macs: float | None = None,
    peer: int | None = None,
) -> tuple[Path, Calibration]:
    """Choose a temperature, and early exits for a target, on the validation split; write ``calibration.json``.

    Raises UsageError where validation images are test images or have trained the network, for targets that cannot be
    met, and for a target if the checkpoint has no branches.

    Args:
        checkpoint: checkpoint of any module.
        data: data module that holds out validation images, as it did in the fit.
        target_accuracy: accuracy in [0, 1] that is reached with as few multiply-adds as possible.
        target_macs: mean multiply-adds per image, within which the accuracy is as high as possible.
        peer: number of the peer, from 1; by default that of the best accuracy.

    Examples:
        >>> path, calibration = calibrate("runs/student/last.ckpt", data, target_accuracy=0.78)  # doctest: +SKIP
    """
    if target_accuracy is not None and target_macs is not None:
        raise UsageError("target-accuracy and target-macs are alternatives: leave one of them out")
    if target_accuracy is not None:
        require(0 < target_accuracy <= 1, "target-accuracy", target_accuracy, "a fraction above 0 and at most 1")
    if target_macs is not None:
        require(target_macs > 0, "target-macs", target_macs, "above 0")
    trained = read_trained(local_path("checkpoint", checkpoint), peer=peer, data=data)
    if trained.student.embeds:
        raise UsageError(f"calibrate: {trained.path} is an embedding network, which has no probabilities to calibrate")
    has_target = target_accuracy is not None or target_macs is not None
    network = network_with_branches(trained) if has_target else None
    if has_target and network is None:
        raise UsageError(
            f"target-accuracy and target-macs need branches, which {trained.path} lacks: leave them out, for a "
            "temperature alone, or name a run of StudentModule or TeacherModule"
        )
    logits, labels = _logits_of(trained, network, data)
    (class_logits,) = logits["class_head"]
    temperature = fit_temperature(class_logits, labels)
    likelihoods = [float(F.cross_entropy(class_logits / divisor, labels)) for divisor in (1.0, temperature)]
    exits: Operation | None = None
    if network is not None:
        candidates = []
        for kind, make_exits in EXITS.items():
            costs = multiply_adds_until(network, trained.student.image_size, make_exits)
            candidates += operations(kind, logits[kind], labels, costs)
        exits = choose(candidates, target_accuracy, target_macs)
    calibration = Calibration(
        trained.digest,
        len(labels),
        f"{data.validated_on} of {type(data).__name__}",
        temperature,
        [round(likelihood, 4) for likelihood in likelihoods],
        exits,
    )
    return write_calibration(calibration, trained), calibration


def _logits_of(trained: Trained, network: HSAKDNet | None, data: ImageDataModule) -> tuple[dict[str, Tensor], Tensor]:
    """Return logits (K, n, N) of the class head and of each kind of exit on the validation images, and labels (n,)."""
    student = trained.student
    parts: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for images, batch_labels in evenly_spaced(data, student.description, MOST_IMAGES, "val"):
        if not labels:
            _check_held_out(trained, data)  # as soon as the splits are read
        labels.append(batch_labels)
        parts.setdefault("class_head", []).append(student(images)[None])
        if network is not None:
            inputs = normalise(images, student.channel_mean, student.channel_std)
            for kind, exits in EXITS.items():
                parts.setdefault(kind, []).append(torch.stack([*exit_logits(network, inputs, exits)]).float())
    if not labels:
        raise UsageError(f"{type(data).__name__}: no image is held out for validation: raise val_fraction")
    return {kind: torch.cat(batches, 1) for kind, batches in parts.items()}, torch.cat(labels)


def _check_held_out(trained: Trained, data: ImageDataModule) -> None:
    """Raise UsageError if the validation images test too, or if they are training images not held out in the fit."""
    if data.splits["val"] is data.splits.get("test"):
        raise UsageError(
            "calibrate: the run validates on its test split, and what is chosen on test images flatters when they are "
            "tested: name data with a validation split, or train with --data.init_args.val_fraction, which holds out "
            "training images next to a test split"
        )
    result = trained.path.with_name(RESULT_FILE)
    protocol = read_row(result).get("protocol") if result.is_file() else None
    if not protocol or "train" not in data.facts:
        return
    recorded = (protocol.get("data") or {}).get("train") or {}
    if recorded.get("fingerprint") != data.facts["train"].fingerprint:
        return  # other images
    for option in ("val_fraction", "train_fraction"):
        before = protocol["options"].get(f"data.init_args.{option}", getattr(data, option))
        if before != getattr(data, option):
            raise UsageError(
                f"{option} is {getattr(data, option):g}, but the run was trained with {before:g}: the images held out "
                "now would have trained it; leave the option out, or train again"
            )
