"""What every data module shares: arguments, and splits that are read, checked and parted."""

import os
from pathlib import Path
from typing import ClassVar, TypedDict

from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data.augment import check_statistics
from hsakd_pl.data.batches import BatchedDataModule
from hsakd_pl.data.description import Description
from hsakd_pl.data.splits import Split, check_class_names, check_split, stratified_indices
from hsakd_pl.errors import UsageError, require
from hsakd_pl.files import local_path
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import FullSignature


class DataOptions(TypedDict, total=False):
    """The options of :class:`ImageDataModule` that all data modules take by keyword."""

    batch_size: int
    train_fraction: float
    val_fraction: float
    seed: int | None
    augment: bool
    num_workers: int | None
    predict_dir: str | Path | None
    on_error: str


class ImageDataModule(BatchedDataModule):
    """Base of all data modules; a data set of your own is a subclass with these attributes and :meth:`read`.

    Batches are uint8 images (B, 3, S, S) with int64 labels (B,), and become normalised float32 on the device.

    Args:
        root: folder of the data set.
        batch_size: samples of all devices together.
        train_fraction: few-shot part of the training split, with the indices of scikit-learn's
            ``StratifiedShuffleSplit(n_splits=1, test_size=1 - train_fraction, random_state=0)``.
        val_fraction: part of the (few-shot) training split held out for validation, stratified and seeded. 0
            is the paper's protocol: validation on the test split.
        seed: of shuffling, augmentation and the held-out part; by default that of ``pl.seed_everything``.
        augment: off, training images are treated like test images.
        num_workers: processes that open images, per device; by default what the machine has.
        predict_dir: folder whose images ``predict`` takes, turned upright as their EXIF data say.
        on_error: what becomes of a broken image in ``predict``: a ``row`` that says so, or ``raise`` ends it.

    Raises UsageError naming the argument that is out of range.
    """

    __signature__ = FullSignature()
    folder_name: ClassVar[str] = ""  # of the data set inside root
    num_classes: int
    class_names: list[str]  # after setup
    resize: int | None = None  # short side of a photograph before its centre is cut out; by default image_size

    def __init__(
        self,
        root: str | Path = "data",
        *,
        batch_size: int = 64,
        train_fraction: float = 1.0,
        val_fraction: float = 0.0,
        seed: int | None = None,
        augment: bool = True,
        num_workers: int | None = None,
        predict_dir: str | Path | None = None,
        on_error: str = "row",
    ) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(0 < train_fraction <= 1, "train_fraction", train_fraction, "above 0 and at most 1")
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "at least 0 and below 1")
        require(seed is None or 0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")
        require(num_workers is None or num_workers >= 0, "num_workers", num_workers, "at least 0")
        require(on_error in ("row", "raise"), "on_error", on_error, "row or raise")
        self.root = local_path("root", root)
        self.batch_size = batch_size
        self.train_fraction = train_fraction
        self.val_fraction = val_fraction
        self.seed = seed
        self.augment = augment
        self.num_workers = num_workers
        self.predict_dir = predict_dir
        self.on_error = on_error
        self.splits: dict[str, Split] = {}
        self.known: Description | None = None

    @property
    def folder(self) -> Path:
        """Where the files are: ``folder_name`` in ``root``, or ``root`` itself."""
        inner = self.root / self.folder_name
        return inner if inner.is_dir() else self.root

    def read(self, train: bool) -> Split:
        """The training or the test split as it is on disk; raises UsageError if it is missing or broken."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def read_class_names(self) -> list[str]:
        """Names in the order of the labels; none where the data set has none, or is not there to ask."""
        return []

    def known_names(self) -> list[str]:
        """Names of the classes in the order of the labels, those that a trained network knows first; else numbers."""
        names = self.known.class_names if self.known else self.read_class_names()
        return names if not isinstance(names, list) or names else [str(label) for label in range(self.num_classes)]

    @property
    def held_out(self) -> float:
        """Part of what ``read(train=True)`` gives that validates instead."""
        return self.val_fraction

    @property
    def validated_on(self) -> str:
        """Which images validate."""
        return f"{self.val_fraction:g} of the training split" if self.val_fraction else "test split"

    @property
    def roles(self) -> str:
        """What validates and what tests, in a line for the log."""
        if self.val_fraction:
            return f"Validating on {self.validated_on} (val_fraction)"
        return "Validating on the test split, as the paper does (val_fraction: hold out instead)"

    @property
    def description(self) -> Description:
        """What a network that learns these data has to know of them."""
        resize = self.resize or self.image_size
        return Description(self.known_names(), self.image_size, resize, tuple(self.mean), tuple(self.std))

    def adopt(self, description: Description) -> None:
        """Take over what a trained network knows of its data, in place of asking the training images.

        Raises UsageError where those are there and have other classes.
        """
        found = list(self.read_class_names())
        if found and found != description.class_names:
            raise UsageError(
                f"{type(self).__name__}: {self.folder} has the classes {shorten(found)}, the trained network has "
                f"{shorten(description.class_names)}: name the data that it was trained for"
            )
        self.known, self.num_classes = description, len(description.class_names)
        self.image_size, self.resize = description.image_size, description.resize
        self.mean, self.std = description.mean, description.std
        if self.test_transform is not None:
            self.test_transform = description.transform

    def setup(self, stage: str | None = None) -> None:
        """Read what ``stage`` needs and is not there yet; UsageError if a fraction leaves a class empty."""
        name = type(self).__name__
        check_statistics(name, self.mean, self.std)
        require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        self.class_names = check_class_names(self.known_names(), self.num_classes, f"{name}.read_class_names()")
        validating = stage in ("fit", "validate", None) and "val" not in self.splits
        if validating:
            rank_zero_info(self.roles)
        if stage in ("fit", None) or (validating and self.held_out):
            self.read_training()
        if stage in ("test", None):
            self.read_test()
        if validating and not self.held_out:
            self.splits["val"] = self.read_validation()

    def _read(self, train: bool) -> Split:
        return check_split(self.read(train), self.num_classes, f"{type(self).__name__}.read(train={train})")

    def read_test(self) -> Split:
        """The test split, read and checked once."""
        if "test" not in self.splits:
            self.splits["test"] = self._read(train=False)
        return self.splits["test"]

    def read_validation(self) -> Split:
        """The validation split where none is held out of the training split: the test split."""
        return self.read_test()

    def read_training(self) -> Split:
        """The training split without what is held out of it, read, checked and parted once."""
        if "train" not in self.splits:
            self._part(self._read(train=True))
        return self.splits["train"]

    def _part(self, train: Split) -> None:
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if self.train_fraction < 1:
            option = f"train_fraction={self.train_fraction}"
            train = train.take(stratified_indices(train.targets, 1 - self.train_fraction, 0, option)[0])
        if self.held_out:
            option = f"val_fraction={self.val_fraction}"
            kept, held = stratified_indices(train.targets, self.held_out, self.seed, option)
            train, self.splits["val"] = train.take(kept), train.take(held)
        require(len(train.targets) > 1, "the training split's number of images", len(train.targets), "at least 2")
        self.splits["train"] = train
