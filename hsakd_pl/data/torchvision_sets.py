"""torchvision's classification sets, by name."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torchvision.datasets

from hsakd_pl.data.imagefolder import PictureDataModule, PictureOptions
from hsakd_pl.data.items import labels_of
from hsakd_pl.data.layout import Layout
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError, did_you_mean, require
from hsakd_pl.files.lock import in_turn
from hsakd_pl.files.weights import shorten
from hsakd_pl.signatures import Unpack


@dataclass(frozen=True)
class Listed:
    """Splits of one of torchvision's data sets.

    Args:
        train: value of ``option`` for training.
        val: value for validation, if there is such a split next to ``test``.
        test: value for testing; the validation split of sets whose test images have no labels.
        option: option of the class that chooses a split; empty for a set that is not divided.
        files: attribute with the paths of the files, or pairs of a path and a label; empty if pictures are in memory.
        arguments: further options of the class.
    """

    train: Any = "train"
    val: Any = None
    test: Any = "test"
    option: str = "split"
    files: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _undivided(files: str = "") -> Listed:
    return Listed(None, None, None, option="", files=files)


def _two_halves(**arguments: Any) -> Listed:
    return Listed(True, None, False, option="train", arguments=arguments)


# Sets of labelled pictures whose splits share their classes. CelebA (attributes), LFW and Omniglot (other classes in
# each split), LSUN (databases) and videos are left out.
TORCHVISION_SETS: dict[str, Listed] = {
    "CIFAR10": _two_halves(),
    "CIFAR100": _two_halves(),
    "CLEVRClassification": Listed(test="val", files="_image_files"),  # its test images have no labels
    "Caltech101": _undivided(),
    "Caltech256": _undivided(),
    "Country211": Listed(val="valid", files="samples"),
    "DTD": Listed(val="val", files="_image_files"),
    "EMNIST": _two_halves(split="balanced"),
    "EuroSAT": _undivided("samples"),
    "FER2013": Listed(),
    "FGVCAircraft": Listed(val="val", files="_image_files"),
    "FashionMNIST": _two_halves(),
    "Flowers102": Listed(val="val", files="_image_files"),
    "Food101": Listed(files="_image_files"),
    "GTSRB": Listed(files="_samples"),
    "INaturalist": Listed("2021_train", None, "2021_valid", option="version"),
    "ImageNet": Listed(test="val", files="samples"),
    "Imagenette": Listed(test="val", files="_samples"),
    "KMNIST": _two_halves(),
    "MNIST": _two_halves(),
    "OxfordIIITPet": Listed("trainval", files="_images"),
    "PCAM": Listed(val="val"),
    "Places365": Listed("train-standard", None, "val", files="imgs"),
    "QMNIST": _two_halves(),
    "RenderedSST2": Listed(val="val", files="_samples"),
    "SEMEION": _undivided(),
    "STL10": Listed(),
    "SUN397": _undivided("_image_files"),
    "SVHN": Listed(),
    "StanfordCars": Listed(files="_samples"),
    "USPS": _two_halves(),
}


SET_HERE = ("root", "download", "transform", "transforms", "target_transform", "target_type", "target_types")


class Part(NamedTuple):
    """A split of a set: the option that chooses it and its value."""

    option: str
    value: Any

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}" if self.option else "all images"


class TorchvisionDataModule(PictureDataModule):
    """Load one of torchvision's classification sets, by the name of its class.

    Its split for validation, if it has one next to its test split, validates; otherwise the test split does, as in the
    paper. Of a set that is not divided, ``val_fraction`` of the images are held out. Files are opened as those of class
    folders are: upright, with white behind transparent pixels.

    Args:
        root: folder that torchvision finds the set in, or downloads it to.
        dataset: name of the class in ``torchvision.datasets``, such as ``Flowers102``.
        download: let torchvision download the set if it is missing.
        arguments: further options of the class, such as ``{"split": "letters"}`` for EMNIST.

    Other arguments: :class:`PictureDataModule`, :class:`ImageDataModule`.

    Raises:
        UsageError: for a name that is none of torchvision's classification sets, and for ``arguments`` that the data
            module sets.

    Examples:
        >>> flowers = TorchvisionDataModule(dataset="Flowers102", image_size=64, download=True)
        >>> flowers.setup("fit")  # doctest: +SKIP
        >>> data = TorchvisionDataModule("data", dataset="EuroSAT", image_size=64, val_fraction=0.25)
        >>> data.setup("fit")
        >>> data.class_names
        ['cat', 'dog']
    """

    def __init__(
        self,
        root: str | Path = "data",
        *,
        dataset: str,
        download: bool = False,
        arguments: dict[str, Any] | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(root, **options)
        if dataset not in TORCHVISION_SETS:
            hint = did_you_mean(dataset, TORCHVISION_SETS)
            names = ", ".join(TORCHVISION_SETS)
            raise UsageError(
                f"dataset: {dataset} is none of torchvision's classification sets: {hint}there are {names}"
            )
        check_arguments(arguments or {}, TORCHVISION_SETS[dataset].option)
        self.dataset = dataset
        self.download = download
        self.arguments = arguments or {}
        self._opened: dict[Any, Any] = {}

    @property
    def origin(self) -> str:
        return f"torchvision's {self.dataset} in {self.root}"

    @cached_property
    def layout(self) -> Layout:
        """Return the values of the option that chooses a split; for a set that is not divided, its name."""
        listed = TORCHVISION_SETS[self.dataset]
        if not listed.option:
            return Layout(Part("", None), None, None)
        values = (listed.train, listed.val, listed.test)
        train, val, test = (None if value is None else Part(listed.option, value) for value in values)
        return Layout(train, val, test)

    def read_class_names(self) -> list[str]:
        part = self.layout.train
        return self.required_class_names() if part in self._opened else []  # predictions need no images

    def required_class_names(self) -> list[str]:
        return class_names_of_set(self._open(self.layout.train))

    def read_part(self, part: Any, names: list[str]) -> Split:
        dataset = self._open(part)
        others = class_names_of_set(dataset)
        if others != names:
            raise UsageError(f"{self.origin}, {part}, has the classes {shorten(others)}, not {shorten(names)}")
        paths = paths_of(getattr(dataset, TORCHVISION_SETS[self.dataset].files, None))
        if paths is None:
            return Split.from_dataset(dataset)
        return Split(paths, labels_of(dataset))

    def _open(self, part: Any) -> Any:
        """Return a split as an instance of torchvision's class, made once; raise UsageError if that fails."""
        if part not in self._opened:
            listed = TORCHVISION_SETS[self.dataset]
            arguments = {**listed.arguments, **self.arguments, **({part.option: part.value} if part.option else {})}
            make = getattr(torchvision.datasets, self.dataset)
            try:
                if self.download:
                    with in_turn(self.root / f".{self.dataset}.download"):
                        _download(make, self.root, arguments)
                self._opened[part] = make(self.root, **arguments)
            except (EOFError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                raise UsageError(self._failure(part, error)) from error
        return self._opened[part]

    def _failure(self, part: Any, error: Exception) -> str:
        """Return the message for a split that torchvision cannot make."""
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "put a complete copy there by hand" if self.download else "set --data.init_args.download true"
        return (
            f"{self.origin} cannot be read{f' with {part}' if part.option else ''} ({reason:.300}): point "
            f"--data.init_args.root at the folder that torchvision stored it in, or {hint}"
        )


def check_arguments(arguments: Any, option: str) -> None:
    """Raise UsageError for options of torchvision's class that the data module sets, or that change the classes."""
    require(isinstance(arguments, dict), "arguments", arguments, "a dictionary of options by name")
    refused = arguments.keys() & {*SET_HERE, option}
    if refused:
        raise UsageError(
            f"arguments: {', '.join(sorted(refused))} cannot be set, since the data module chooses files, splits, "
            "labels and transforms: leave that out"
        )


def _download(make: Any, root: Path, arguments: Mapping[str, Any]) -> None:
    """Let torchvision download a split, if its class can and it is missing."""
    if "download" not in inspect.signature(make).parameters and not issubclass(make, torchvision.datasets.MNIST):
        return
    try:
        make(root, **arguments)
    except (OSError, RuntimeError):
        make(root, download=True, **arguments)


def class_names_of_set(dataset: Any) -> list[str]:
    """Return the class names of one of torchvision's sets, synonyms joined by commas; numbers if it has none."""
    for name in ("classes", "categories", "all_categories"):
        classes = getattr(dataset, name, None)
        if classes:
            return [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in classes]
    labels = labels_of(dataset)
    if not len(labels):
        raise UsageError(f"torchvision's {type(dataset).__name__} has no image: put a complete copy in its folder")
    return [str(label) for label in range(int(labels.max()) + 1)]


def paths_of(entries: Any) -> list[str] | None:
    """Return the paths in a list of paths, or of pairs of a path and a label; None if it is none."""
    if not entries:
        return None
    return [str(entry[0]) if isinstance(entry, tuple | list) else str(entry) for entry in entries]
