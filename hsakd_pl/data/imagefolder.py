"""Class folders of any images of one's own."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip, check_statistics, random_resized_crop, resized_center_crop
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import MEAN, STD, ClassFolderDataModule
from hsakd_pl.data.images import MAX_PIXELS
from hsakd_pl.data.layout import Layout, find_layout
from hsakd_pl.data.splits import Split, check_split, stratified_indices
from hsakd_pl.data.statistics import measure_once
from hsakd_pl.data.walk import class_folders, class_names_of
from hsakd_pl.errors import UsageError, require
from hsakd_pl.signatures import Unpack


class ImageFolderDataModule(ClassFolderDataModule):
    """Your images in class folders, of any sizes, formats and modes, brought to one size.

    ``root`` holds ``train/<class>/`` with ``val/`` (or ``valid/``) and ``test/``, or with one of them, which then both
    validates, as in the paper, and tests; or the class folders themselves, of which ``val_fraction``, the same images
    whatever the seed, validates and tests. Pictures are turned upright as their EXIF data say, and what is transparent
    in them is white. To test, the short side is brought to ``image_size`` and the central square is cut out.

    Args:
        root: folder of the splits, or of the classes.
        image_size: side of the network's input; 32 or 64 suits the networks for CIFAR, 224 those for ImageNet.
        mean: of each channel in [0, 1]; ``imagenet`` for the numbers that go with published weights; ``auto`` measures
            the training images at their size in tests, once: the numbers are stored beside the data and in checkpoints.
        std: of each channel, where ``mean`` gives numbers.
        augmentation: ``crop`` pads by an eighth of the size and cuts a random square out; ``resized_crop`` is
            ImageNet's recipe (tests then cut the centre out of 256/224 of the size); ``none``; or a class path of a
            torchvision transform, which takes the opened picture (PIL, RGB, any size). What it makes of another size
            is then brought to size as in tests.
        flip: whether ``crop`` and ``resized_crop`` mirror half of the images.
        resident_mib: a split of at most so many MiB at its final size is decoded once and kept on the device; files of
            a larger one, and those of ``resized_crop`` and transforms, are opened by workers in every epoch. The
            batches are the same.

    Other arguments: :class:`ImageDataModule`.
    """

    mean: tuple[float, ...] = ()  # until it is measured
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
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        largest = int(MAX_PIXELS**0.5)
        require(1 <= image_size <= largest, "image_size", image_size, f"from 1 to {largest}")
        require(resident_mib >= 0, "resident_mib", resident_mib, "at least 0")
        self.resident_mib, self.measures = resident_mib, mean == "auto"
        self._use_statistics(mean, std)
        resize = image_size * 256 // 224 if augmentation == "resized_crop" else image_size
        self.use_size(image_size, resize, self._augmentation(augmentation, image_size, flip))

    def _use_statistics(self, mean: Any, std: Any) -> None:
        if not isinstance(mean, str):
            require(std is not None and not isinstance(std, str), "std", std, "three numbers too, since mean is")
            check_statistics(type(self).__name__, mean, std)
            self.mean, self.std = tuple(mean), tuple(std)
            return
        require(mean in ("auto", "imagenet"), "mean", mean, "auto, imagenet or three numbers")
        require(std in (None, mean), "std", std, f"left out, or mean be three numbers: it is {mean}")
        if mean == "imagenet":
            self.mean, self.std = MEAN, STD

    def _augmentation(self, augmentation: Any, size: int, flip: bool) -> PadCropFlip | v2.Transform:
        if not isinstance(augmentation, str):
            require(callable(augmentation), "augmentation", augmentation, "a transform, or the name of one")
            return v2.Compose([augmentation, resized_center_crop(size, size)])
        known = {
            "crop": PadCropFlip(size // 8, flip),  # CIFAR's 4 of 32
            "resized_crop": random_resized_crop(size, flip),
            "none": PadCropFlip(0, flip=False),
        }
        meaning = f"{', '.join(known)}, or the class path of a torchvision.transforms.v2 transform"
        require(augmentation in known, "augmentation", augmentation, meaning)
        self.augment &= augmentation != "none"
        return known[augmentation]

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of class folders; raises UsageError where there are not at least two."""
        return len(self._checked_names())

    @cached_property
    def found(self) -> Layout:
        """Where ``root`` keeps its splits, looked for once."""
        return find_layout(self.root)

    def _checked_names(self) -> list[str]:
        if not (names := self.read_class_names()):
            raise UsageError(
                f"{self.root} holds no class folders: point --data.init_args.root at a folder with train/<class>/ and "
                f"val/<class>/ or test/<class>/, or with <class>/ and --data.init_args.val_fraction{self._inner()}"
            )
        if len(names) < 2:
            raise UsageError(
                f"{self.found.train} holds one class, {names[0]}: a classifier needs at least two{self._inner()}"
            )
        return names

    def _inner(self) -> str:
        """Point to a folder in ``root`` that looks like the one that is meant."""
        inner = [self.root / name for name in class_names_of(self.root)]
        meant = [folder for folder in inner if find_layout(folder).train]
        return f" ({meant[0]} looks like what is meant)" if meant else ""

    def read_class_names(self) -> list[str]:
        return class_names_of(self.found.train) if self.found.train else []

    def _layout(self) -> Layout:
        """Where the splits are; raises UsageError where val_fraction is missing, or what it would hold out is there."""
        found = self.found
        if found.val and self.val_fraction:
            raise UsageError(f"val_fraction: {found.val} validates and {found.test} tests: leave it out")
        if found.train and not found.test and not self.val_fraction:
            self._checked_names()
            raise UsageError(
                f"{self.root} has no val/, valid/ or test/ with class folders to validate and test on: add one, or set "
                f"--data.init_args.val_fraction (0.2 holds out a fifth of the images){self._inner()}"
            )
        return found

    @property
    def held_out(self) -> float:
        return self.val_fraction if self._layout().test else 0.0

    @property
    def validated_on(self) -> str:
        return "validation folder" if self._layout().val else super().validated_on

    @property
    def roles(self) -> str:
        found, part = self._layout(), f"{self.val_fraction:g} of the images in"
        if found.val:
            return f"Validating on {found.val}, testing on {found.test}"
        if not found.test:
            return f"Validating and testing on {part} {self.root} (val_fraction)"
        if self.val_fraction:
            return f"Validating on {part} {found.train} (val_fraction), testing on {found.test}"
        return (
            f"Validating and testing on {found.test}, as the paper does (val_fraction: hold out some of train/ instead)"
        )

    def read(self, train: bool) -> Split:
        found, names = self._layout(), self.known_names()
        if found.test and not train:
            return Split(*class_folders(found.test, names))
        if not found.train:
            raise UsageError(f"{self.root} has no train/ with class folders: set --data.init_args.root")
        whole = Split(*class_folders(found.train, names))
        if found.test:
            return whole
        kept, held = stratified_indices(whole.targets, self.val_fraction, 0, f"val_fraction={self.val_fraction}")
        return whole.take(kept if train else held)

    def read_validation(self) -> Split:
        if not (folder := self._layout().val):
            return super().read_validation()
        return check_split(Split(*class_folders(folder, self.known_names())), self.num_classes, str(folder))

    def prepare_data(self) -> None:
        """Measure mean and std where that is asked for, in one process for all."""
        if self.measures and not self.mean:
            train = self.read_training()
            paths, size = [*map(str, train.images)], self.image_size
            batches = partial(self.plain_loader, train, everywhere=True)
            self.mean, self.std = measure_once(self.root, paths, (size, self.resize or size), batches)

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()  # where Lightning did not call it
        super().setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {"mean": list(self.mean), "std": list(self.std)} if self.measures else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was measured when the run began."""
        if self.measures and self.mean != (mean := tuple(state_dict["mean"])):
            rank_zero_info("Mean and std stay those that the run began with")
            self.mean, self.std = mean, tuple(state_dict["std"])
            self._statistics_on.clear()
