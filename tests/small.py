"""Small modules of every kind, a batch, and trainers that keep quiet."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule, HSAKDModule, LinearProbeModule, MutualModule, StudentModule, TeacherModule
from hsakd_pl.networks import create_network

CLASSES = 4
BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(CLASSES)

# class, networks, and the terms of its loss
MODULES: dict[str, tuple[type[HSAKDModule], dict[str, Any], list[str]]] = {
    "baseline": (BaselineModule, {"network": "resnet8"}, ["ce"]),
    "teacher": (TeacherModule, {"network": "resnet8"}, ["ce", "joint_ce"]),
    "student": (StudentModule, {"network": "resnet8", "teacher": "resnet14"}, ["ce", "kd", "joint_kd"]),
    "mutual": (MutualModule, {"networks": ["resnet8", "resnet14"]}, ["ce", "joint_ce", "kd", "joint_kd"]),
    "probe": (LinearProbeModule, {"network": "resnet8"}, ["ce"]),
}


def make(kind: str, built: bool = False, **options: Any) -> HSAKDModule:
    """A module of 4 classes, with the same weights at every call, from names or from built networks."""
    torch.manual_seed(0)
    module, networks, _ = MODULES[kind]
    if built:
        networks = {key: _build(name) for key, name in networks.items()}
    return module(**{**networks, "num_classes": CLASSES, **options})


def _build(name: str | list[str]) -> Any:
    return create_network(name, CLASSES) if isinstance(name, str) else [_build(each) for each in name]


def loader(images: Tensor = BATCH[0]) -> DataLoader[tuple[Tensor, ...]]:
    """Two batches of two images."""
    return DataLoader(TensorDataset(images, BATCH[1]), batch_size=2)


def trainer(folder: Path | None = None, max_epochs: int = 1, **options: Any) -> pl.Trainer:
    """A trainer on the CPU that writes ``last.ckpt`` into ``folder``, or nothing."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    if folder is not None:
        last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        options["callbacks"] = [*options.get("callbacks", []), last]
    return pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", enable_checkpointing=folder is not None, **{**quiet, **options}
    )
