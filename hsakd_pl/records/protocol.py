"""The protocol of a run: all that can change its result but the seed. Only runs of one protocol are averaged."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision

from hsakd_pl.cpu.cores import available_cores
from hsakd_pl.cpu.kinds import find_cpu
from hsakd_pl.data.fingerprint import saved_facts
from hsakd_pl.errors import counted
from hsakd_pl.files.weights import WeightFile
from hsakd_pl.modules.accumulation import compared_images
from hsakd_pl.modules.build import PRETRAINED, RANDOM
from hsakd_pl.records.callbacks import tuned_values
from hsakd_pl.records.options import CALLBACKS, ROOT, WEIGHT_OPTIONS, in_protocol
from hsakd_pl.version import __version__

# Part of it where they do not have these values: the protocols of earlier versions do not have these options.
UNSET = {
    "data.init_args.channels": 3,
    "model.init_args.channels": 3,
    "model.init_args.loss_weights": None,
    "model.init_args.teacher_answers_dtype": "float32",
    "model.init_args.teacher_answers_top": None,
}
MEAN = "data.init_args.mean"
# Changes on resume that are not part of the hash: they lengthen the run, or name another commit of the code
WITHOUT_EFFECT = ("trainer.max_epochs", "trainer.max_steps", "commit")
LIMITS = re.compile(r"trainer\.(limit_\w+_batches|overfit_batches|max_steps)$")


def weight_facts(options: Mapping[str, Any], files: Mapping[str, WeightFile]) -> dict[str, Any]:
    """Return the SHA-256 of each file of numbers that a run starts from, and the accuracy of the teacher's file.

    Weights that timm publishes have the digest of what was loaded, since other releases may publish others. ``files``
    are those that the module read, by option. A missing one is left out: a checkpoint replaced it.
    """
    facts: dict[str, Any] = {"weights_sha256": None, "teacher_sha256": None, "teacher_acc": None}
    for option, key in WEIGHT_OPTIONS.items():
        source = options.get(f"model.init_args.{option}")
        digest = files[option].digest if option in files else None
        if source == PRETRAINED and digest is not None:
            facts[key] = f"{digest} ({PRETRAINED})"
        elif source in (RANDOM, PRETRAINED):
            facts[key] = source
        elif option in files and files[option].sha256 is not None:
            facts[key] = files[option].sha256
    if "teacher_weights" in files:
        facts["teacher_acc"] = files["teacher_weights"].accuracy
        if files["teacher_weights"].inputs is not None:
            facts["teacher_inputs"] = dict(files["teacher_weights"].inputs)
    return facts


def augmentation(data: Any, module: Any) -> str:
    """Return what augments training images, in words, with that of the strong view where the module has one."""
    if not getattr(data, "augment", True):
        return "none"
    usual = str(getattr(data, "train_transform", ""))
    if not getattr(module, "needs_strong_view", False):
        return usual
    return f"{usual}; strong view: {' '.join(str(data.strong_transform(resized=True)).split())}"


def is_same_source(recorded: str | None, expected: str | None) -> bool:
    """Return whether a fact of :func:`weight_facts` agrees with one that is expected before the weights are loaded."""
    is_pretrained = expected == PRETRAINED and str(recorded).endswith(f"({PRETRAINED})")
    return is_pretrained or recorded == expected


def data_facts(data: Any) -> dict[str, dict[str, Any]] | None:
    """Return what identifies each split that a data module has read; None for modules of other packages."""
    facts = getattr(data, "facts", None)
    return saved_facts(facts) if isinstance(facts, dict) and facts else None


def measured_statistics(options: Mapping[str, Any], data: Any) -> dict[str, list[float]]:
    """Return the mean and std that were measured on the training images, or read from an earlier measurement's file."""
    if options.get(MEAN) != "auto":
        return {}
    return {name: [float(value) for value in getattr(data, name)] for name in ("mean", "std")}


def machine(trainer: pl.Trainer) -> dict[str, Any]:
    """Return device, number of devices, precision, CPU and versions of a run."""
    is_cuda = trainer.strategy.root_device.type == "cuda"
    versions = {"hsakd_pl": __version__}
    for package in (torch, torchvision, pl):
        versions[package.__name__] = package.__version__
    cpu = find_cpu()
    cores = available_cores()
    return {
        "device": torch.cuda.get_device_name() if is_cuda else f"{cpu.model}, {counted(cores, 'core')}",
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "cpu": {
            "model": cpu.model,
            "instructions": cpu.kind.name,
            "used_by_pytorch": torch.backends.cpu.get_cpu_capability(),
            "cores": cores,
            "threads": torch.get_num_threads(),
            "spin_count": os.environ.get("GOMP_SPINCOUNT"),
        },
        "versions": versions,
    }


def protocol_hash(*parts: Any) -> str:
    """Return 12 hexadecimal digits of the hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def kept_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that belong to a protocol."""
    return {
        option: value
        for option, value in options.items()
        if in_protocol(option) and not (option in UNSET and value == UNSET[option])
    }


def protocol_of(
    options: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Any],
    callbacks: Sequence[str],
    trainer: pl.Trainer,
) -> dict[str, Any]:
    """Return the protocol of a fit, once it runs.

    Its ``hash`` covers all that can change the result: the options that are neither seeds nor paths, the data, their
    measured mean and std, the weights, devices, precision and changes.

    Args:
        options: resolved options of the run.
        changes: options that a resumed run changed.
        weights: return value of :func:`weight_facts`.
        callbacks: return value of :func:`hsakd_pl.records.callbacks.training_callbacks`.
        trainer: trainer of the run.
    """
    module: Any = trainer.lightning_module
    data = getattr(trainer, "datamodule", None)
    facts = data_facts(data)
    optimizer = trainer.optimizers[0]
    tuned = tuned_values(options, module, data)
    kept = kept_options({**options, **tuned})
    kept[CALLBACKS] = "; ".join(callbacks) or None
    if "model.init_args.num_classes" in kept and hasattr(module, "num_classes"):
        kept["model.init_args.num_classes"] = module.num_classes  # which came from the data
    if facts is None and ROOT in options:
        kept[ROOT] = options[ROOT]  # nothing else tells the data of other packages' modules apart
    effective_changes = [change for change in changes if change["option"] not in WITHOUT_EFFECT]
    hardware = {name: value for name, value in machine(trainer).items() if name in ("devices", "precision")}
    hashes = {name: value for name, value in weights.items() if name != "teacher_acc"}
    statistics = measured_statistics(options, data)
    parts = [kept, hashes, hardware, effective_changes, facts, *([statistics] if statistics else [])]
    head = "class head, untransformed images"
    peers = len(getattr(module, "networks", ()))  # modules of users may have none
    if peers > 1:
        head += f", mean of {peers} peers"
    return {
        "hash": protocol_hash(*parts),
        "options": kept,
        "data": facts,
        "statistics": statistics or None,
        "found": tuned,
        "epochs": trainer.max_epochs,
        "optimizer": type(optimizer).__name__,
        "lr": tuned.get("model.init_args.lr", optimizer.defaults.get("lr")),
        "momentum": optimizer.defaults.get("momentum"),
        "nesterov": optimizer.defaults.get("nesterov"),
        "weight_decay": optimizer.defaults.get("weight_decay"),
        "batch_size": getattr(data, "batch_size", None),
        "compared_images": compared_images(trainer, module),
        "views": getattr(module, "views", None),
        "augmentation": augmentation(data, module),
        "head": head,
        "validated_on": getattr(data, "validated_on", None),
        "limited": {name: kept[name] for name in kept if LIMITS.match(name) and kept[name] not in (None, 0, -1)},
        **weights,
        **hardware,
    }
