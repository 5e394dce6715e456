"""What a trained network has to know of its data: the names of its classes, and how a picture becomes its input."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchvision.transforms import v2

from hsakd_pl.data.augment import check_statistics, resized_center_crop
from hsakd_pl.data.splits import check_class_names
from hsakd_pl.errors import UsageError, require


@dataclass(frozen=True)
class Description:
    """Travels in checkpoints and exports, so that neither training images nor a data set's name are needed later.

    A picture is brought to ``resize`` pixels on its short side, its central ``image_size`` x ``image_size`` is cut out,
    and its pixels in [0, 1] are normalised by ``mean`` and ``std`` of each channel. Raises UsageError where these are
    impossible.
    """

    class_names: list[str]
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check_statistics("the description of the data", self.mean, self.std)
        require(0 < self.image_size <= self.resize, "image_size", self.image_size, f"at least 1, at most {self.resize}")

    @property
    def transform(self) -> v2.Transform:
        """PIL image of any size -> uint8 (3, image_size, image_size)."""
        return resized_center_crop(self.image_size, self.resize)

    def saved(self) -> dict[str, Any]:
        """As plain data: numbers, texts and lists of them."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}


def read_description(content: Any, origin: str) -> Description:
    """Read what :meth:`Description.saved` gave; raises UsageError naming ``origin`` where it is anything else."""
    try:
        if not isinstance(content, Mapping):
            raise TypeError(f"a {type(content).__name__} instead of names with values")
        names = check_class_names(content["class_names"], len(content["class_names"]), origin)
        mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
        return Description(names, int(content["image_size"]), int(content["resize"]), mean, std)
    except (KeyError, TypeError, ValueError) as error:
        message = f"{origin} does not describe its data ({type(error).__name__}: {error}): write it again"
        raise UsageError(message) from error
