"""Data sets whose pictures have any size, format and mode, and class folders of them."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torchvision.transforms import v2

from hsakd_pl.data.augment import (
    PadCropFlip,
    check_statistics,
    numbers,
    random_resized_crop,
    resized_center_crop,
)
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import MEAN, STD, ClassFolderDataModule
from hsakd_pl.data.layout import Layout, find_layout, split_of, training_folder
from hsakd_pl.data.limits import check_channel_count, check_image_size
from hsakd_pl.data.splits import Split, check_split, stratified_indices
from hsakd_pl.data.statistics import check_channels, key_of_files, measure_once
from hsakd_pl.data.walk import class_folders, class_names_of, class_paths
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.signatures import Unpack


class PictureOptions(DataOptions, total=False):
    """The options of :class:`PictureDataModule` that its subclasses take by keyword."""

    image_size: int
    mean: Sequence[float] | str
    std: Sequence[float] | str | None
    augmentation: v2.Transform | str
    flip: bool
    resident_mib: int
    channels: int


class PictureDataModule(ClassFolderDataModule):
    """Base class of data sets whose pictures have any size, format and mode, and whose splits are found.

    A subclass says where the splits are (:attr:`layout`), what their classes are called (:meth:`read_class_names`) and
    how one is read (:meth:`read_part`). Splits for validation and testing are used as such; a single one serves for
    both, as in the paper; without any, ``val_fraction`` of the images, the same for every seed, are held out for both.
    Pictures are turned upright as their EXIF data say, and transparent pixels are white. For testing, the short side is
    resized to ``image_size`` and the central square is cut out.

    Args:
        root: folder of the data set.
        image_size: side of the network's input; 32 or 64 suits the networks for CIFAR, 224 those for ImageNet.
        mean: mean of each channel, in [0, 1]; ``imagenet`` for the statistics of published weights; ``auto`` measures
            the training images as resized for testing, once: the result is stored next to the data and in checkpoints.
        std: standard deviation of each channel, if ``mean`` is numbers.
        augmentation: ``crop`` pads by an eighth of the size and crops randomly; ``resized_crop`` is ImageNet's random
            resized crop (tests then cut the centre out of 256/224 of the size); ``none``; or the class path of a
            torchvision transform that takes an opened picture (PIL, RGB, any size; grey with one channel; a uint8
            tensor (C, H, W) with two, four or more); its output is resized as in tests.
        flip: mirror half of the images in ``crop`` and ``resized_crop``.
        resident_mib: largest size in MiB of a resized split that is decoded once and kept on the device; files of a
            larger split, or with ``resized_crop`` or a transform, are opened by workers in every epoch. The batches are
            equal.
        channels: number of channels that pictures are opened with: 3 for RGB, 1 for grey levels. For other numbers the
            files must have as many, such as 4 in RGBA (red, green, blue and depth), or be TIFFs with as many grey
            frames; their values are used as they are.

    Other arguments: :class:`ImageDataModule`.
    """

    mean: tuple[float, ...] = ()  # empty until it is measured
    std: tuple[float, ...] = ()

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 64,
        mean: Sequence[float] | str = "auto",
        std: Sequence[float] | str | None = None,
        augmentation: v2.Transform | str = "crop",
        flip: bool = True,
        resident_mib: int = 1024,
        channels: int = 3,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        check_channel_count(channels)
        self.channels = channels
        require(resident_mib >= 0, "resident_mib", resident_mib, "at least 0")
        self.resident_mib = resident_mib
        self.measures_statistics = mean == "auto"
        self._use_statistics(mean, std)
        check_image_size(image_size)
        resize = image_size * 256 // 224 if augmentation == "resized_crop" else image_size
        self.use_size(image_size, resize, self._train_transform(augmentation, image_size, flip))

    def _use_statistics(self, mean: Any, std: Any) -> None:
        if not isinstance(mean, str):
            meaning = f"{numbers(self.channels)} if mean is"
            require(std is not None and not isinstance(std, str), "std", std, meaning)
            check_statistics(type(self).__name__, mean, std, self.channels)
            self.mean = tuple(mean)
            self.std = tuple(std)
            return
        named = "auto, imagenet or" if self.channels == len(MEAN) else "auto or"
        valid = mean == "auto" or (mean == "imagenet" and self.channels == len(MEAN))
        require(valid, "mean", mean, f"{named} {numbers(self.channels)}")
        require(std in (None, mean), "std", std, f"left out with mean {mean}")
        if mean == "imagenet":
            self.mean = MEAN
            self.std = STD

    def _train_transform(self, augmentation: Any, size: int, flip: bool) -> PadCropFlip | v2.Transform:
        if not isinstance(augmentation, str):
            require(callable(augmentation), "augmentation", augmentation, "a transform, or the name of one")
            return v2.Compose([augmentation, resized_center_crop(size, size)])
        transforms = {
            "crop": PadCropFlip(padding=size // 8, flip=flip),  # as CIFAR's 4 pixels for images of 32
            "resized_crop": random_resized_crop(size, flip),
            "none": PadCropFlip(padding=0, flip=False),
        }
        meaning = f"{', '.join(transforms)}, or the class path of a torchvision.transforms.v2 transform"
        require(augmentation in transforms, "augmentation", augmentation, meaning)
        if augmentation == "none":
            self.augment = False
        return transforms[augmentation]

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]  # an attribute of the base class
        """Return the number of classes; raise UsageError if there are fewer than two."""
        return len(self.checked_class_names())

    @cached_property
    def layout(self) -> Layout:
        """Return where the splits are."""
        raise NotImplementedError(f"{type(self).__name__} must implement layout")

    def read_part(self, part: Any, names: list[str]) -> Split:
        """Return the images and labels of one of the parts of :attr:`layout`.

        Args:
            part: ``train``, ``val`` or ``test`` of the layout.
            names: class names in label order.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read_part")

    @property
    def origin(self) -> str:
        return str(self.root)

    def label_names(self) -> list[str]:
        return super().label_names() if self.adopted else self.checked_class_names()

    def checked_class_names(self) -> list[str]:
        """Return the class names, for which the data are read; raise UsageError if there are fewer than two."""
        names = self.required_class_names()
        if len(names) < 2:
            raise UsageError(f"{self.origin} has {counted(len(names), 'class')}: a classifier needs at least two")
        return names

    def required_class_names(self) -> list[str]:
        """Return the class names also where :meth:`read_class_names` would have to download the data."""
        return self.read_class_names()

    def lacks_train(self) -> str:
        """Return the error for data without a split to train on."""
        return f"{self.origin} has no split to train on: name one that has, or choose other data"

    def lacks_test(self) -> str:
        """Return the error for data without a split to test on."""
        return (
            f"{self.origin} has no split to validate and test on: set --data.init_args.val_fraction (0.2 holds out a "
            "fifth of the images)"
        )

    def _checked_layout(self) -> Layout:
        """Return the layout; raise UsageError if val_fraction is missing, or set although there is a split for it."""
        layout = self.layout
        if layout.val and self.val_fraction:
            raise UsageError(f"val_fraction: {layout.val} validates and {layout.test} tests: leave val_fraction out")
        if layout.train and not layout.test and not self.val_fraction:
            self.checked_class_names()
            raise UsageError(self.lacks_test())
        return layout

    @property
    def held_out_fraction(self) -> float:
        return self.val_fraction if self._checked_layout().test else 0.0

    @property
    def validated_on(self) -> str:
        return "validation split" if self._checked_layout().val else super().validated_on

    @property
    def roles(self) -> str:
        layout = self._checked_layout()
        held_out = f"{self.val_fraction:g} of the images in"
        if layout.val:
            return f"Validating on {layout.val}, testing on {layout.test}"
        if not layout.test:
            return f"Validating and testing on {held_out} {self.origin} (val_fraction)"
        if self.val_fraction:
            return f"Validating on {held_out} {layout.train} (val_fraction), testing on {layout.test}"
        return (
            f"Validating and testing on {layout.test}, as the paper does "
            f"(val_fraction holds out images of {self.training_name} instead)"
        )

    @property
    def training_name(self) -> str:
        """Return what the training split is called in messages."""
        return "the training split"

    def read(self, train: bool) -> Split:
        layout = self._checked_layout()
        names = self.label_names()
        if layout.test and not train:
            return self.read_part(layout.test, names)
        if not layout.train:
            raise UsageError(self.lacks_train())
        split = self.read_part(layout.train, names)
        if layout.test:
            return split
        option = f"val_fraction={self.val_fraction}"
        kept, held_out = stratified_indices(split.targets, self.val_fraction, 0, option)
        return split.take(kept if train else held_out)

    def read_validation(self) -> Split:
        part = self._checked_layout().val
        if not part:
            return super().read_validation()
        split = self.read_part(part, self.label_names())
        return check_split(split, self.num_classes, str(part), self.channels)

    def prepare_data(self) -> None:
        """Measure mean and std if ``mean`` is ``auto``, in one process for all."""
        if self.measures_statistics and not self.mean:
            training = self.read_training()
            make_loader = partial(self.plain_loader, training, on_every_device=True)
            root = self.root if isinstance(training.images, list) else None
            mean, std = measure_once(root, self._measured_key(training), self.image_size, make_loader, self.channels)
            check_channels(mean, std)
            self.mean = mean
            self.std = std

    def _measured_key(self, training: Split) -> str:
        """Return a key of the images whose mean and std are measured."""
        geometry: tuple[int, ...] = (self.image_size, self.resize or self.image_size)
        if self.channels != 3:
            geometry = (*geometry, self.channels)
        if isinstance(training.images, list):
            return key_of_files(self.root, training.images, geometry)
        facts = self.identify(training)
        return hashlib.sha256(f"{geometry} {facts.fingerprint}".encode()).hexdigest()

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()  # Lightning calls it in fit, but not if setup is called directly
        super().setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the facts of the splits, and the mean and std if they were measured."""
        statistics = {"mean": list(self.mean), "std": list(self.std)} if self.measures_statistics else {}
        return super().state_dict() | statistics

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the data are those that the run began with, and keep the mean and std that were measured then."""
        super().load_state_dict(state_dict)
        if not self.measures_statistics:
            return
        mean = tuple(state_dict["mean"])
        if self.mean != mean:
            rank_zero_info("Mean and std stay those that the run began with")
            self.mean = mean
            self.std = tuple(state_dict["std"])
            self._statistics_on.clear()


class ImageFolderDataModule(PictureDataModule):
    """Load images in class folders, of any size, format and mode.

    ``root`` contains ``train/<class>/`` and one or both of ``val/<class>/`` and ``test/<class>/``, or other usual names
    of splits in any case (``Training/``, ``valid/``, ``test_set/``); a single one serves for validation, as in the
    paper, and for testing. The log states the classes and the number of images. If ``root`` contains the class folders
    themselves, ``val_fraction`` of the images, the same for every seed, are held out for both. Pictures are turned
    upright as their EXIF data say, and transparent pixels are white. For testing, the short side is resized to
    ``image_size`` and the central square is cut out.

    Args:
        root: folder of the splits, or of the classes.

    Other arguments: :class:`PictureDataModule`, :class:`ImageDataModule`.

    Examples:
        >>> data = ImageFolderDataModule("photos", image_size=32, batch_size=4, num_workers=0)
        >>> data.setup("fit")
        >>> data.class_names, len(data.splits["train"].targets)
        (['cat', 'dog'], 8)
        >>> module = BaselineModule("resnet20", num_classes=data.num_classes)
        >>> trainer.fit(module, data)  # doctest: +SKIP
    """

    @cached_property
    def layout(self) -> Layout:
        """Return the folders of the splits in ``root``."""
        return find_layout(self.root)

    def read_part(self, part: Any, names: list[str]) -> Split:
        return Split(*class_folders(part, names))

    def checked_class_names(self) -> list[str]:
        if not Path(self.root).exists():
            raise UsageError(f"{self.root} does not exist: point --data.init_args.root at a folder of class folders")
        names = self.read_class_names()
        if not names:
            raise UsageError(
                f"{self.root} contains no class folders: point --data.init_args.root at a folder with train/<class>/ "
                "and val/<class>/ or test/<class>/, or with <class>/ and --data.init_args.val_fraction"
                f"{self._suggested_root()}{self._unsorted()}"
            )
        if len(names) < 2:
            raise UsageError(
                f"{self.layout.train} contains one class, {names[0]}: a classifier needs at least two"
                f"{self._suggested_root()}"
            )
        return names

    def _suggested_root(self) -> str:
        """Return a hint at a folder in ``root`` that has a training folder; an empty string if there is none."""
        paths = class_paths(self.root).values()
        for path in paths:
            train = training_folder(path)
            only = len(paths) == 1 and not split_of(path.name)
            if train and (train != path or only):
                return f" ({path} looks like the folder you want)"
        return ""

    def _unsorted(self) -> str:
        """Return a hint at a split's folder whose images are not in class folders; an empty string if there is none."""
        for folder in self.layout.ignored:
            if split_of(folder.name):
                return f"; {folder} contains images, but no class folders: sort them into {folder.name}/<class>/"
        return ""

    def read_class_names(self) -> list[str]:
        return class_names_of(self.layout.train) if self.layout.train else []

    def lacks_train(self) -> str:
        return f"{self.root} has no train/ with class folders: set --data.init_args.root"

    def lacks_test(self) -> str:
        return (
            f"{self.root} has no val/, valid/ or test/ with class folders to validate and test on: add one, or set "
            "--data.init_args.val_fraction (0.2 holds out a fifth of the images)"
            f"{self._suggested_root()}{self._unsorted()}"
        )

    @property
    def validated_on(self) -> str:
        return "validation folder" if self._checked_layout().val else super().validated_on

    @property
    def training_name(self) -> str:
        return "train/"

    @property
    def roles(self) -> str:
        ignored = ", ".join(str(folder) for folder in self.layout.ignored)
        return super().roles + (f"; images in {ignored} are ignored" if ignored else "")
