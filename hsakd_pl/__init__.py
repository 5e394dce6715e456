"""Hierarchical Self-supervised Augmented Knowledge Distillation (HSAKD, IJCAI 2021) for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hsakd_pl.cpu.start import prepare_cpu as prepare_cpu
from hsakd_pl.version import __version__ as __version__

if TYPE_CHECKING:
    from hsakd_pl import methods
    from hsakd_pl.data import (
        CIFAR100DataModule,
        DigitsDataModule,
        FeatureDataModule,
        HubDataModule,
        ImageDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
        LitDataModule,
        STL10DataModule,
        TinyImageNetDataModule,
        TorchvisionDataModule,
        UnlabelledDataModule,
        convert,
        open_image,
    )
    from hsakd_pl.export import QuantizationAware, export_student, load_student
    from hsakd_pl.modules import (
        EMA,
        BaselineModule,
        EmbeddingModule,
        Frozen,
        HSAKDModule,
        LinearProbeModule,
        MutualModule,
        StudentModule,
        TeacherModule,
    )
    from hsakd_pl.networks import create_network, list_networks, register_network
    from hsakd_pl.networks.keys import published_state_dict
    from hsakd_pl.networks.weights import load_weights
    from hsakd_pl.ops import COLOURS, FLIPS, ROTATIONS, Transforms
    from hsakd_pl.quickstart import quickstart
    from hsakd_pl.records.quiet import quieten_lightning

__all__ = [
    "COLOURS",
    "EMA",
    "FLIPS",
    "ROTATIONS",
    "BaselineModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "EmbeddingModule",
    "FeatureDataModule",
    "Frozen",
    "HSAKDModule",
    "HubDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "LinearProbeModule",
    "LitDataModule",
    "MutualModule",
    "QuantizationAware",
    "STL10DataModule",
    "StudentModule",
    "TeacherModule",
    "TinyImageNetDataModule",
    "TorchvisionDataModule",
    "Transforms",
    "UnlabelledDataModule",
    "convert",
    "create_network",
    "export_student",
    "list_networks",
    "load_student",
    "load_weights",
    "methods",
    "open_image",
    "prepare_cpu",
    "published_state_dict",
    "quickstart",
    "quieten_lightning",
    "register_network",
]
_HOMES = (
    "records.quiet",
    "ops",
    "networks",
    "networks.keys",
    "networks.weights",
    "data",
    "modules",
    "export",
)  # of these names, from the ground floor up


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the help of the command line does not wait for PyTorch and Lightning."""
    if name in ("methods", "quickstart"):
        return import_module(f"hsakd_pl.{name}")
    for home in _HOMES if name in __all__ else ():
        if hasattr(module := import_module(f"hsakd_pl.{home}"), name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
