"""Describe the data that a network was trained on: the names of its classes, and how a picture becomes its input."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchvision.transforms import v2

from hsakd_pl.data.augment import check_statistics, resized_center_crop
from hsakd_pl.data.limits import check_channel_count, check_image_size, check_side
from hsakd_pl.data.splits import check_class_names
from hsakd_pl.errors import UsageError, require


@dataclass(frozen=True)
class Description:
    """The classes and the preprocessing of a trained network, stored in checkpoints and exports.

    With it, testing, prediction and export need neither the training images nor the name of the data set. A picture is
    resized, cropped and normalised: ``(pixels / 255 - mean) / std``.

    Args:
        class_names: names of the classes in label order.
        image_size: side of the square that is cut out of the centre.
        resize: short side to resize to before that.
        mean: mean of each channel, in [0, 1]; as many numbers as the images have channels.
        std: standard deviation of each channel.

    Raises UsageError for impossible values.
    """

    class_names: list[str]
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check_channel_count(self.channels)
        check_statistics("the description of the data", self.mean, self.std, self.channels)
        check_side("resize", self.resize)
        require(0 < self.image_size <= self.resize, "image_size", self.image_size, f"at least 1, at most {self.resize}")
        check_image_size(self.image_size)

    @property
    def channels(self) -> int:
        """Return the number of channels C of the images."""
        return len(self.mean)

    @property
    def transform(self) -> v2.Transform:
        """Return the transform from an opened picture of any size to uint8 (C, image_size, image_size)."""
        return resized_center_crop(self.image_size, self.resize)

    def saved(self) -> dict[str, Any]:
        """Return the description as numbers, strings and lists of them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def read_description(content: Any, origin: str) -> Description:
    """Read the result of :meth:`Description.saved`; raise UsageError naming ``origin`` if it is anything else."""
    try:
        if not isinstance(content, Mapping):
            raise TypeError(f"a {type(content).__name__} instead of a mapping")
        names = check_class_names(content["class_names"], len(content["class_names"]), origin)
        return Description(
            class_names=names,
            image_size=int(content["image_size"]),
            resize=int(content["resize"]),
            mean=tuple(map(float, content["mean"])),
            std=tuple(map(float, content["std"])),
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        message = f"{origin} does not describe its data ({type(error).__name__}: {error}): write it again"
        raise UsageError(message) from error
