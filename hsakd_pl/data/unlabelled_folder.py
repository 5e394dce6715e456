"""A folder of pictures without labels as a data set, for modules that need none."""

from functools import cached_property
from pathlib import Path

from hsakd_pl.data.fingerprint import facts_of
from hsakd_pl.data.imagefolder import ImageFolderDataModule, PictureOptions
from hsakd_pl.data.splits import Split, stratified_indices
from hsakd_pl.data.unlabelled import read_unlabelled
from hsakd_pl.data.walk import class_folders, class_names_of
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.signatures import Unpack


class UnlabelledDataModule(ImageFolderDataModule):
    """Load pictures of any size, format and mode below a folder, without labels, for :class:`hsakd_pl.EmbeddingModule`.

    Args:
        root: folder of the pictures, whose subfolders are searched too, or STL-10's ``unlabeled_X.bin``.
        labelled: folder of class folders, on which embeddings are validated and tested; without it, ``val_fraction`` of
            the pictures, the same for every seed, are held out for both, and the mean cosine is all that is measured.

    Other arguments: :class:`PictureDataModule`, :class:`ImageDataModule`.

    Raises:
        UsageError: for a ``val_fraction`` next to ``labelled``.

    Examples:
        >>> data = UnlabelledDataModule("photos", val_fraction=0.25, image_size=32, batch_size=4, num_workers=0)
        >>> data.setup("fit")
        >>> len(data.splits["train"].targets), len(data.splits["val"].targets)
        (9, 3)
    """

    def __init__(
        self,
        root: str | Path = "data",
        labelled: str | Path | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(root, **options)
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
