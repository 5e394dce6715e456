"""The base class of all data modules: its options, and reading, checking and dividing of splits."""

import math
import os
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data.augment import check_statistics
from hsakd_pl.data.batches import BatchedDataModule
from hsakd_pl.data.description import Description
from hsakd_pl.data.fingerprint import (
    SplitFacts,
    check_equal_on_all_processes,
    check_unchanged,
    facts_of,
    read_facts,
    saved_facts,
)
from hsakd_pl.data.limits import check_channel_count
from hsakd_pl.data.splits import Split, check_class_names, check_split, stratified_indices
from hsakd_pl.data.unlabelled import Unlabelled, is_named, log_unlabelled, read_unlabelled, unlabelled_split
from hsakd_pl.data.walk import canonical
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.files import local_path, naming
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import FullSignature

REST = "rest"  # for the option ``unlabelled``


class DataOptions(TypedDict, total=False):
    """The options of :class:`ImageDataModule` that all data modules take by keyword."""

    batch_size: int
    train_fraction: float
    val_fraction: float
    seed: int | None
    augment: bool
    num_workers: int | None
    predict_dir: str | Path | list[str] | None
    on_error: str
    unlabelled: Unlabelled | None
    unlabelled_ratio: float


class ImageDataModule(BatchedDataModule):
    """Load and augment images; a new data set is a subclass with the attributes below and :meth:`read`.

    Batches hold uint8 images (B, C, S, S) and int64 labels (B,); the images are normalised to float32 on the device.
    They have 3 channels unless the attribute ``channels`` says otherwise, and ``mean`` and ``std`` as many numbers.

    Args:
        root: folder of the data set.
        batch_size: number of samples per batch, over all devices together.
        train_fraction: fraction of the training split to train on (few-shot), with the indices of scikit-learn's
            ``StratifiedShuffleSplit(n_splits=1, test_size=1 - train_fraction, random_state=0)``.
        val_fraction: fraction of the (few-shot) training split to hold out for validation, stratified and seeded; 0
            validates on the test split, as in the paper.
        seed: seed of shuffling, augmentation and the held-out part; by default that of ``pl.seed_everything``.
        augment: augment training images; otherwise they are treated like test images.
        num_workers: number of processes per device that open images; by default chosen for the machine.
        predict_dir: images for ``predict``: a folder, whose subfolders are searched too, an image file, or a list of
            these. Pictures are turned upright as their EXIF data say.
        on_error: ``row`` reports a broken image in ``predict`` in its row, ``raise`` ends with an error.
        unlabelled: images without labels to train on as well: a folder, whose subfolders are searched too, a list of
            folders, STL-10's ``unlabeled_X.bin``, another data module, whose labels are ignored, or ``rest``, the
            training images that ``train_fraction`` leaves out. Only methods that use no labels but in the cross-entropy
            take them. An epoch remains one pass through the labelled images.
        unlabelled_ratio: number of unlabelled images for each labelled one in a batch, in addition to ``batch_size``.

    Raises:
        UsageError: naming an argument that is out of range.

    Examples:
        >>> import torch
        >>> from hsakd_pl.data.augment import PadCropFlip
        >>> class NoiseDataModule(ImageDataModule):
        ...     num_classes = 2
        ...     image_size = 8
        ...     mean = std = (0.5, 0.5, 0.5)
        ...     train_transform = PadCropFlip(padding=1)
        ...
        ...     def read(self, train: bool) -> Split:
        ...         images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
        ...         return Split(images, torch.arange(20) % 2)
        >>> data = NoiseDataModule(batch_size=4)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    __signature__ = FullSignature()
    folder_name: ClassVar[str] = ""  # name of the data set's folder in root
    num_classes: int
    class_names: list[str]  # available after setup
    resize: int | None = None  # short side of an image before its centre is cut out; by default image_size

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
        predict_dir: str | Path | list[str] | None = None,
        on_error: str = "row",
        unlabelled: Unlabelled | None = None,
        unlabelled_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(0 < train_fraction <= 1, "train_fraction", train_fraction, "above 0 and at most 1")
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "at least 0 and below 1")
        require(seed is None or 0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")
        require(num_workers is None or num_workers >= 0, "num_workers", num_workers, "at least 0")
        require(on_error in ("row", "raise"), "on_error", on_error, "row or raise")
        require(0 < unlabelled_ratio < math.inf, "unlabelled_ratio", unlabelled_ratio, "above 0, and finite")
        has_rest = not is_named(unlabelled, REST) or train_fraction < 1
        require(has_rest, "unlabelled", unlabelled, "left out with train_fraction 1, which leaves no images")
        self.unlabelled = unlabelled
        self.unlabelled_ratio = unlabelled_ratio
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
        self.facts: dict[str, SplitFacts] = {}  # of the splits that were read, before they were divided
        self.adopted: Description | None = None
        self._logged: set[str] = set()  # names of the splits whose images were logged

    @property
    def folder(self) -> Path:
        """Return the folder of the files: ``folder_name`` in ``root`` if that exists, otherwise ``root``."""
        subfolder = self.root / self.folder_name
        with naming(self.root):
            return subfolder if subfolder.is_dir() else self.root

    @property
    def origin(self) -> str:
        """Return where the data are, for messages."""
        return str(self.folder)

    def read(self, train: bool) -> Split:
        """Return the training or the test split.

        Args:
            train: read the training split.

        Returns:
            Images and labels.

        Raises:
            UsageError: if the split is missing or broken.

        Examples:
            >>> DigitsDataModule().read(train=True).targets.shape
            torch.Size([1257])
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def read_class_names(self) -> list[str]:
        """Return the class names in label order.

        Returns:
            Names; an empty list if the data set has none or is missing.

        Examples:
            >>> DigitsDataModule().read_class_names()[:3]
            ['0', '1', '2']
        """
        return []

    def label_names(self) -> list[str]:
        """Return the class names in label order: those of an adopted description, of the data set, or numbers.

        Raises UsageError unless each class has one string.
        """
        names = (self.adopted.class_names if self.adopted else None) or self.read_class_names()
        if isinstance(names, list) and not names:
            return [str(label) for label in range(self.num_classes)]
        return check_class_names(names, self.num_classes, f"{type(self).__name__}.read_class_names()")

    @property
    def held_out_fraction(self) -> float:
        """Return the fraction of the training split that :meth:`read_training` holds out for validation."""
        return self.val_fraction

    @property
    def validated_on(self) -> str:
        """Return a phrase for the images that validate."""
        return f"{self.val_fraction:g} of the training split" if self.val_fraction else "test split"

    @property
    def roles(self) -> str:
        """Return a line for the log that says which images validate and which test."""
        if self.val_fraction:
            return f"Validating on {self.validated_on} (val_fraction)"
        return "Validating on the test split, as the paper does (val_fraction holds out images instead)"

    @property
    def description(self) -> Description:
        """Return the description of the data that a network trained on them stores."""
        resize = self.resize or self.image_size
        return Description(self.label_names(), self.image_size, resize, tuple(self.mean), tuple(self.std))

    def adopt(self, description: Description) -> None:
        """Use a trained network's description of its data in place of the training images.

        Raises UsageError if training images exist and have other classes.
        """
        class_names = list(self.read_class_names()) if description.class_names else []  # unlabelled images have none
        if class_names and [*map(canonical, class_names)] != [*map(canonical, description.class_names)]:
            raise UsageError(
                f"{type(self).__name__}: {self.origin} has the classes {shorten(class_names)}, but the trained network "
                f"has {shorten(description.class_names)}: choose the data that it was trained on"
            )
        self.adopted = description
        if description.class_names:
            self.num_classes = len(description.class_names)
        self.channels = description.channels
        self.image_size = description.image_size
        self.resize = description.resize
        self.mean = description.mean
        self.std = description.std
        if self.test_transform is not None:
            self.test_transform = description.transform

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return what identifies the data by split: 12 hexadecimal digits for each split that was read.

        They stand for class names, number of images, labels and pictures, before a part was chosen or held out, and do
        not depend on the location of the files.
        """
        return {split: facts.fingerprint for split, facts in self.facts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the facts of the splits, with which a resumed run compares its data."""
        return {"facts": saved_facts(self.facts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise UsageError if a run would be resumed with other data than it began with."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            facts = state_dict.get("facts", {}) if isinstance(state_dict, dict) else state_dict
            before = read_facts(facts, "the checkpoint")  # early checkpoints have none
            check_unchanged(before, self.facts, self._place)

    @property
    def _place(self) -> str:
        return f"{type(self).__name__}, {self.origin}"

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that ``stage`` needs, once.

        Raises UsageError if a fraction leaves a class empty, and in all processes of a run if their data differ.
        """
        name = type(self).__name__
        check_channel_count(self.channels)
        check_statistics(name, self.mean, self.std, self.channels)
        require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        self.class_names = self.label_names()
        needs_validation = stage in ("fit", "validate", None) and "val" not in self.splits
        if needs_validation:
            rank_zero_info(self.roles)
        if stage in ("fit", None) or (needs_validation and self.held_out_fraction):
            self.read_training()
        if stage in ("test", None):
            self.read_test()
        if needs_validation and not self.held_out_fraction:
            self.splits["val"] = self.read_validation()
            if self.splits["val"] is not self.splits.get("test"):
                self.facts["val"] = self.identify(self.splits["val"])
        self._log_splits()
        if self.trainer is not None:
            check_equal_on_all_processes(self.facts, self._place)

    def _log_splits(self) -> None:
        """Log the classes, and the images of each split once, so that a folder read otherwise is noticed."""
        new = [name for name in ("train", "val", "test") if name in self.splits and name not in self._logged]
        self._logged.update(new)
        if new:
            counts = [f"{len(self.splits[name].targets):,} in {name}" for name in new]
            names = shorten(self.class_names)
            classes = f"{counted(len(self.class_names), 'class')}, {names}, with images" if names else "images"
            rank_zero_info(f"Read {classes}: {', '.join(counts)}")

    def read_test(self) -> Split:
        """Return the test split, read and checked once."""
        if "test" not in self.splits:
            self.splits["test"] = self._read(train=False)
        return self.splits["test"]

    def read_validation(self) -> Split:
        """Return the validation split if none is held out of the training split: by default the test split."""
        return self.read_test()

    def read_training(self) -> Split:
        """Return the training split without its held-out part, read and checked once."""
        if "train" not in self.splits:
            self._divide(self._read(train=True))
            if self.unlabelled is not None and "unlabelled" not in self.splits:
                self._keep_unlabelled(read_unlabelled(self.unlabelled))
        return self.splits["train"]

    def training_images(self) -> Any:
        """Return the images of the training split for use without labels, as ``images`` of a :class:`Split`."""
        self.prepare_data()
        return self.read_training().images

    def _keep_unlabelled(self, split: Split) -> None:
        self.splits["unlabelled"] = split
        self.facts["unlabelled"] = facts_of(split, [])
        log_unlabelled(split, self.unlabelled_ratio)

    def _read(self, train: bool) -> Split:
        where = f"{type(self).__name__}.read(train={train})"
        split = check_split(self.read(train), self.num_classes, where, self.channels)
        self.facts["train" if train else "test"] = self.identify(split)
        return split

    def identify(self, split: Split) -> SplitFacts:
        """Return what identifies a split before it is divided."""
        return facts_of(split, self.label_names())

    def _divide(self, training: Split) -> None:
        """Store the few-shot part of the training split, and hold out a part of that for validation."""
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if self.train_fraction < 1:
            option = f"train_fraction={self.train_fraction}"
            few_shot, rest = stratified_indices(training.targets, 1 - self.train_fraction, 0, option)
            if is_named(self.unlabelled, REST):
                self._keep_unlabelled(unlabelled_split(training.take(rest).images))
            training = training.take(few_shot)
        if self.held_out_fraction:
            option = f"val_fraction={self.val_fraction}"
            kept, held_out = stratified_indices(training.targets, self.held_out_fraction, self.seed, option)
            self.splits["val"] = training.take(held_out)
            training = training.take(kept)
        num_images = len(training.targets)
        require(num_images > 1, "the training split's number of images", num_images, "at least 2")
        self.splits["train"] = training
