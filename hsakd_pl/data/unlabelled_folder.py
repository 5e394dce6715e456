"""A folder of pictures without labels as a data set, for modules that need none."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torchvision.transforms import v2

from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.fingerprint import facts_of
from hsakd_pl.data.imagefolder import ImageFolderDataModule
from hsakd_pl.data.splits import Split, stratified_indices
from hsakd_pl.data.unlabelled import read_unlabelled
from hsakd_pl.data.walk import class_folders, class_names_of
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.signatures import Unpack


class UnlabelledDataModule(ImageFolderDataModule):
    """Pictures of any size, format and mode below a folder, without labels, for :class:`hsakd_pl.EmbeddingModule`.

    Args:
        root: folder of the pictures, whose subfolders are searched too, or STL-10's ``unlabeled_X.bin``.
        labelled: folder of class folders, on which embeddings are validated and tested; without it, ``val_fraction`` of
            the pictures, the same for every seed, are held out for both, and the mean cosine is all that is measured.
        image_size: side of the network's input.
        mean: mean of each channel, in [0, 1], ``imagenet`` or ``auto``; see :class:`hsakd_pl.ImageFolderDataModule`.
        std: standard deviation of each channel, if ``mean`` is three numbers.
        augmentation: ``crop``, ``resized_crop``, ``none``, or the class path of a torchvision transform.
        flip: mirror half of the images in ``crop`` and ``resized_crop``.
        resident_mib: largest size in MiB of a resized split that is decoded once and kept on the device.

    Other arguments: :class:`hsakd_pl.data.ImageDataModule`.

    Examples:
        >>> data = UnlabelledDataModule("pictures", labelled="sorted", image_size=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path = "data",
        labelled: str | Path | None = None,
        image_size: int = 64,
        mean: Sequence[float] | str = "auto",
        std: Sequence[float] | str | None = None,
        augmentation: v2.Transform | str = "crop",
        flip: bool = True,
        resident_mib: int = 1024,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, image_size, mean, std, augmentation, flip, resident_mib, **options)
        self.labelled = None if labelled is None else local_path("labelled", labelled)
        if self.labelled is not None and self.val_fraction:
            raise UsageError(f"val_fraction: {self.labelled} validates and tests: leave val_fraction out")

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]  # an attribute of the base class
        """Return the number of class folders in ``labelled``; 0 without it."""
        return len(self.read_class_names())

    def read_class_names(self) -> list[str]:
        if self.labelled is None:
            return []
        names = class_names_of(self.labelled)
        if not names:
            raise UsageError(f"labelled: {self.labelled} is missing or contains no class folders: check the path")
        return names

    def checked_class_names(self) -> list[str]:
        """Return the class names, of which there may be none."""
        return self.read_class_names()

    @property
    def held_out_fraction(self) -> float:
        return 0.0

    @property
    def validated_on(self) -> str:
        return "labelled folder" if self.labelled else "unlabelled images"

    @property
    def roles(self) -> str:
        where = self.labelled or f"{self.val_fraction:g} of the images in {self.root} (val_fraction)"
        return f"Validating and testing on {where}"

    def read(self, train: bool) -> Split:
        if self.labelled is not None and not train:
            return Split(*class_folders(self.labelled, self.label_names()))
        split = read_unlabelled(self.root)
        if self.labelled is not None:
            return split
        if not self.val_fraction:
            raise UsageError(
                "val_fraction: nothing validates: set --data.init_args.labelled to a folder of class folders, or "
                "--data.init_args.val_fraction (0.1 holds out a tenth of the pictures)"
            )
        kept, held_out = stratified_indices(split.targets, self.val_fraction, 0, f"val_fraction={self.val_fraction}")
        return split.take(kept if train else held_out)

    def read_validation(self) -> Split:
        return self.read_test()

    def _read(self, train: bool) -> Split:
        if self.labelled is not None and not train:
            return super()._read(train)
        split = self.read(train)
        self.facts["train" if train else "test"] = facts_of(split, [])
        return split
