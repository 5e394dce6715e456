"""Hierarchical Self-supervised Augmented Knowledge Distillation (HSAKD, IJCAI 2021) for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hsakd_pl import methods
from hsakd_pl.data import (
    CIFAR100DataModule,
    DigitsDataModule,
    FeatureDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    STL10DataModule,
    TinyImageNetDataModule,
)
from hsakd_pl.modules import (
    BaselineModule,
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
)
from hsakd_pl.networks import create_network, list_networks, register_network
from hsakd_pl.ops import COLOURS, FLIPS, ROTATIONS, Transforms
from hsakd_pl.weights import load_weights, published_state_dict

if TYPE_CHECKING:
    from hsakd_pl.exported import export_student, load_student

__version__ = "0.1.0"
__all__ = [
    "COLOURS",
    "FLIPS",
    "ROTATIONS",
    "BaselineModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "FeatureDataModule",
    "HSAKDModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "LinearProbeModule",
    "MutualModule",
    "STL10DataModule",
    "StudentModule",
    "TeacherModule",
    "TinyImageNetDataModule",
    "Transforms",
    "create_network",
    "export_student",
    "list_networks",
    "load_student",
    "load_weights",
    "methods",
    "published_state_dict",
    "register_network",
]


def __getattr__(name: str) -> Any:
    """Import what exports once it is asked for: it needs libraries that training does not."""
    if name in ("export_student", "load_student"):
        return getattr(import_module("hsakd_pl.exported"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
