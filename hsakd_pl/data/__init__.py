"""Data modules; subclass ImageDataModule for a new data set."""

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.cifar100 import CIFAR100DataModule
from hsakd_pl.data.convert import convert
from hsakd_pl.data.description import Description
from hsakd_pl.data.digits import DigitsDataModule
from hsakd_pl.data.features import FeatureDataModule
from hsakd_pl.data.hub import HubDataModule
from hsakd_pl.data.imagefolder import ImageFolderDataModule
from hsakd_pl.data.imagenet import ImageNetDataModule
from hsakd_pl.data.images import open_image
from hsakd_pl.data.lit import LitDataModule
from hsakd_pl.data.splits import Split
from hsakd_pl.data.stl10 import STL10DataModule
from hsakd_pl.data.tinyimagenet import TinyImageNetDataModule
from hsakd_pl.data.torchvision_sets import TorchvisionDataModule
from hsakd_pl.data.unlabelled_folder import UnlabelledDataModule

__all__ = [
    "CIFAR100DataModule",
    "Description",
    "DigitsDataModule",
    "FeatureDataModule",
    "HubDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "LitDataModule",
    "STL10DataModule",
    "Split",
    "TinyImageNetDataModule",
    "TorchvisionDataModule",
    "UnlabelledDataModule",
    "convert",
    "open_image",
]
