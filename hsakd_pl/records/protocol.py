"""What a run measures, apart from its seed: two runs of one protocol belong into one mean, and no others."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision

from hsakd_pl.files.weights import WeightFile
from hsakd_pl.modules.build import PRETRAINED, RANDOM
from hsakd_pl.version import __version__

# Options that are no part of it: seeds, where things lie (of weights the hash counts), and how a run is watched.
OUTSIDE = re.compile(
    r"config$|seed_everything$|ckpt_path$|weights_only$|save_every_minutes$|data\.init_args\.(seed|root|download|predict_dir)$"
    r"|model\.init_args\.(weights|teacher_weights|projection_weights|teacher_sha256|ensemble)$"
    r"|trainer\.(default_root_dir|logger|enable_\w+|profiler"
    r"|num_sanity_val_steps|log_every_n_steps|detect_anomaly|fast_dev_run|barebones|max_time|model_registry)(\.|$)"
)
# Part of it where it is set: the protocols of earlier versions do not have this option.
LOSS_WEIGHTS = "model.init_args.loss_weights"
LIMITS = re.compile(r"trainer\.(limit_\w+_batches|overfit_batches|max_steps)$")


def weight_facts(options: Mapping[str, Any], files: Mapping[str, WeightFile]) -> dict[str, Any]:
    """Return the SHA-256 of each weight file that a run starts from, and the accuracy that the teacher's file states.

    ``files`` are those that the module read, by option. A missing one is left out: a checkpoint replaced it.
    """
    facts: dict[str, Any] = {"weights_sha256": None, "teacher_sha256": None, "teacher_acc": None}
    for option in ("weights", "teacher_weights", "projection_weights"):
        key = f"{option.removesuffix('_weights')}_sha256"
        source = options.get(f"model.init_args.{option}")
        if source in (RANDOM, PRETRAINED):
            facts[key] = source
        elif option in files and files[option].sha256 is not None:
            facts[key] = files[option].sha256
    if "teacher_weights" in files:
        facts["teacher_acc"] = files["teacher_weights"].accuracy
    return facts


def machine(trainer: pl.Trainer) -> dict[str, Any]:
    """Say what a run runs on: device, number of devices, precision, versions."""
    cuda = trainer.strategy.root_device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "versions": {"hsakd_pl": __version__}
        | {package.__name__: package.__version__ for package in (torch, torchvision, pl)},
    }


def protocol_hash(*parts: Any) -> str:
    """Give 12 hexadecimal digits that stand for these parts, plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def kept_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that are no part of a protocol."""
    kept = {option: value for option, value in options.items() if not OUTSIDE.match(option)}
    if kept.get(LOSS_WEIGHTS, "") is None:
        del kept[LOSS_WEIGHTS]
    return kept


def protocol_of(
    options: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], weights: Mapping[str, Any], trainer: pl.Trainer
) -> dict[str, Any]:
    """Describe what a fit did, once it runs.

    ``options`` are the resolved ones, ``changes`` what a resumed run did otherwise, ``weights`` of
    :func:`weight_facts`. ``hash`` covers all that can move the result: the options that are neither seeds nor paths,
    the weights, devices, precision and changes.
    """
    module: Any = trainer.lightning_module
    data, optimizer = getattr(trainer, "datamodule", None), trainer.optimizers[0]
    kept = kept_options(options)
    if "model.init_args.num_classes" in kept and hasattr(module, "num_classes"):
        kept["model.init_args.num_classes"] = module.num_classes  # which came from the data
    moved = [change for change in changes if change["option"] not in ("trainer.max_epochs", "commit")]
    ran_on = {name: value for name, value in machine(trainer).items() if name in ("devices", "precision")}
    hashes = {name: value for name, value in weights.items() if name != "teacher_acc"}
    peers = len(getattr(module, "networks", ()))  # none in a module of the user's own
    rates = optimizer.defaults
    return {
        "hash": protocol_hash(kept, hashes, ran_on, moved),
        "options": kept,
        "epochs": trainer.max_epochs,
        "optimizer": type(optimizer).__name__,
        **{name: rates.get(name) for name in ("lr", "momentum", "nesterov", "weight_decay")},
        "batch_size": getattr(data, "batch_size", None),
        "views": getattr(module, "views", None),
        "augmentation": str(getattr(data, "train_transform", "")) if getattr(data, "augment", True) else "none",
        "head": f"class head, untransformed images{f', mean of {peers} peers' if peers > 1 else ''}",
        "validated_on": getattr(data, "validated_on", None),
        "limited": {name: kept[name] for name in kept if LIMITS.match(name) and kept[name] not in (None, 0, -1)},
        **weights,
        **ran_on,
    }
