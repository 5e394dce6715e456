"""State what is known of the data that a network was trained on, and compare it with the data at hand."""

from dataclasses import dataclass, replace
from math import isclose

from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import WeightFile, shorten
from hsakd_pl.networks import Network

TOLERANCE = 1e-6  # of mean and std; differences that float32 does not resolve

Statistics = tuple[float, ...]


@dataclass(frozen=True)
class Learned:
    """The part of a :class:`Description` that is known of the data a network was trained on.

    Args:
        origin: file or object that states it, for messages.
        class_names: names of the classes in label order; None if unknown.
        image_size: side of the images in pixels; None if unknown.
        mean: mean of each channel, which was subtracted from the images; None if unknown.
        std: standard deviation of each channel, which the images were divided by; None if unknown.
    """

    origin: str
    class_names: list[str] | None = None
    image_size: int | None = None
    mean: Statistics | None = None
    std: Statistics | None = None

    def normalised_alike(self, mean: Statistics, std: Statistics) -> bool:
        """Check whether ``mean`` and ``std`` are those of this data, or these are unknown."""
        if self.mean is None or self.std is None:
            return True
        if len(self.mean) != len(mean):
            return False
        pairs = zip((*self.mean, *self.std), (*mean, *std), strict=True)
        return all(isclose(learned, other, abs_tol=TOLERANCE) for learned, other in pairs)


def learned_from(network: Network) -> Learned:
    """Return what is known of the data that a network was trained on.

    It is what the file of its weights says. A network of timm's whose file says nothing is assumed to have learnt from
    images that were normalised as its ``pretrained_cfg`` states; their size is only assumed if the network takes no
    other, or if its classes are still those of the published weights. Raises UsageError for a file that describes
    images of other channels than the network's.
    """
    file = network.weights_from
    if file is not None and file.description is not None:
        learned = learned_from_file(file)
        channels = network.in_channels if learned.mean is None else len(learned.mean)
        if channels != network.in_channels:
            raise UsageError(
                f"{file.path} describes images of {channels} channels, but its network takes {network.in_channels}: "
                "load it into a network that was created for its channels"
            )
        of_this_head = len(learned.class_names or ()) == network.num_classes
        return learned if of_this_head else replace(learned, class_names=None)
    config = network.pretrained_cfg
    if not {"input_size", "mean", "std"} <= config.keys():
        return Learned("" if file is None else file.path)
    _, height, width = config["input_size"]
    published = network.num_classes == config.get("num_classes")
    sized = height == width and bool(published or config.get("fixed_input_size"))
    adapted = network.in_channels != len(config["mean"])  # to other channels, whose statistics nobody states
    return Learned(
        origin="timm's pretrained_cfg",
        image_size=int(height) if sized else None,
        mean=None if adapted else tuple(map(float, config["mean"])),
        std=None if adapted else tuple(map(float, config["std"])),
    )


def learned_from_file(file: WeightFile) -> Learned:
    """Return what a weight file says of its data; raises UsageError if its description is damaged."""
    if file.description is None:
        return Learned(file.path)
    description = read_description(file.description, file.path)
    return Learned(
        origin=file.path,
        class_names=known_class_names(description.class_names),
        image_size=description.image_size,
        mean=description.mean,
        std=description.std,
    )


def known_class_names(class_names: list[str]) -> list[str] | None:
    """Return the names, or None if they are the numbers that stand for unknown names."""
    numbers = [str(label) for label in range(len(class_names))]
    return None if class_names == numbers else class_names


def require_same_classes(what: str, learned: Learned, description: Description, remedy: str) -> None:
    """Raise UsageError, naming both, if the classes of a network and of the data differ in content or order.

    Args:
        what: phrase for the network.
        learned: what is known of the data that it was trained on.
        description: description of the data at hand.
        remedy: phrase that says what to do.
    """
    class_names = known_class_names(description.class_names)
    if learned.class_names is None or class_names is None or learned.class_names == class_names:
        return
    message = f"{what} was trained on the classes {shorten(learned.class_names)}, the data have {shorten(class_names)}"
    for label, (old, new) in enumerate(zip(learned.class_names, class_names, strict=False)):
        if old != new:
            message += f" (label {label} is {old:.120} there and {new:.120} here)"
            break
    raise UsageError(f"{message}: {remedy}")
