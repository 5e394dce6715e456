"""Check that networks are used for what they learnt: the classes, the normalisation and the size of their images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data import Description, FeatureDataModule, ImageDataModule
from hsakd_pl.data.description import read_description
from hsakd_pl.data.learned import Learned, known_class_names, learned_from, learned_from_file, require_same_classes
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.modules.build import RANDOM
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.inputs import make_adapter
from hsakd_pl.networks import Network
from hsakd_pl.networks.weights import describe

if TYPE_CHECKING:
    from hsakd_pl.modules.evaluated import EvaluatedModule

SAME_CLASSES = "give the data the same classes in the same order"


def format_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """Return mean and standard deviation of each channel, rounded, as a phrase for the log."""
    numbers = [", ".join(f"{value:.4g}" for value in values or ()) for values in (mean, std)]
    return f"mean ({numbers[0]}) and std ({numbers[1]})"


def data_of(module: "EvaluatedModule") -> ImageDataModule | None:
    """Return the data module of the images that the trainer of a module reads, if it is one of the package's."""
    data = getattr(module._trainer, "datamodule", None)
    if isinstance(data, FeatureDataModule):
        data = data.images
    return data if isinstance(data, ImageDataModule) else None


def learned_by(module: "EvaluatedModule", teacher: Frozen) -> Learned:
    """Return what is known of the data that a module's teacher was trained on: nothing for random weights."""
    is_first = teacher is getattr(module, "teacher", None)
    if module.teacher_inputs is not None and is_first:
        return module.teacher_inputs
    if is_first and module.hparams.get("teacher_weights") == RANDOM:
        return Learned(RANDOM)
    return learned_from(teacher.network)


def check_channels(module: "EvaluatedModule") -> None:
    """Raise UsageError if a network, trained or frozen, takes images of other channels than the data's."""
    channels = getattr(getattr(module._trainer, "datamodule", None), "channels", None)
    networks = [*module.networks, *(frozen.network for frozen in module.frozen)]
    for network in networks:
        if isinstance(network, Network) and channels not in (None, network.in_channels):
            data = type(getattr(module._trainer, "datamodule", None)).__name__
            raise UsageError(
                f"{describe(network)} takes images of {counted(network.in_channels, 'channel')}, {data} has "
                f"{channels}: set channels of both to the same number, or choose a network that was trained on such "
                "images"
            )


def check_fit(module: "EvaluatedModule") -> None:
    """Check the networks of a module before a fit, and set what their images are normalised with.

    The images are normalised as those of a frozen network within the trained one were; a teacher's are adapted from
    them. Raises UsageError if the classes of one of these networks, or of initial weights, differ from the data's.
    """
    data = data_of(module)
    parts = [frozen for frozen in module.frozen if frozen not in module.teachers]
    inner = [frozen for frozen in parts if isinstance(frozen.network, Network)]  # a single layer is given no images
    for frozen in inner:
        use_normalisation(module, learned_from(frozen.network), data)
    description = getattr(getattr(module._trainer, "datamodule", None), "description", None)
    module.description = module.described(description) if isinstance(description, Description) else None
    if module.description is None:
        if module.teachers:
            rank_zero_info("The data do not say how they are normalised: the teacher is given the student's images")
        return
    if module.classifies:
        check_weight_files(module, module.description)
    feed_teachers(module)
    log_teacher_inputs(module, module.description)
    if not inner:
        log_other_images(module, module.description)


def check_weight_files(module: "EvaluatedModule", description: Description) -> None:
    """Raise UsageError if the classes of a weight file, or of a network given as a teacher, differ from the data's."""
    for option, file in module.weight_files.items():
        if file.description is None:
            if file.missing is None and file.sha256 is not None:
                rank_zero_info(f"{option}: {file.path} does not say which classes and images it was trained on")
        elif option != "weights" or (module.keeps_classes and not module.hparams.get("new_head")):
            remedy = f"{SAME_CLASSES}, or name another file"
            if option == "weights" and "new_head" in module.hparams:
                remedy += ", or set new_head for new classes"
            require_same_classes(f"{option}: {file.path}", learned_from_file(file), description, remedy)
    if "teacher_weights" not in module.weight_files:
        for teacher in module.teachers:
            remedy = f"{SAME_CLASSES}, or choose another teacher"
            require_same_classes("the teacher", learned_from(teacher.network), description, remedy)
    if "weights" not in module.weight_files and module.keeps_classes:
        for network in module.networks:
            remedy = f"{SAME_CLASSES}, or load the weights with new_head=True for new classes"
            require_same_classes("the network", learned_from(network), description, remedy)


def use_normalisation(module: "EvaluatedModule", learned: Learned, data: ImageDataModule | None) -> None:
    """Let the data normalise their images as a network has learnt, and log it if this is another normalisation."""
    if data is None or learned.mean is None or learned.std is None:
        return
    if module.network_normalisation and not learned.normalised_alike(data.mean, data.std):
        rank_zero_info(
            f"The images are normalised with {format_statistics(learned.mean, learned.std)}, as those that the frozen "
            f"network was trained on ({learned.origin}), instead of {format_statistics(data.mean, data.std)}"
        )
        data.use_statistics(learned.mean, learned.std)
    if learned.image_size not in (None, data.image_size):
        rank_zero_info(
            f"The frozen network was trained on images of {learned.image_size} x {learned.image_size} pixels "
            f"({learned.origin}), the data have {data.image_size} x {data.image_size}"
        )


def feed_teachers(module: "EvaluatedModule") -> None:
    """Adapt the images of each teacher from those of the module's ``description``."""
    description = module.description
    if description is None:
        return
    transformed = module.views > 1 and not module.needs_strong_view
    transforms = module.network.transforms if transformed else None
    for teacher in module.teachers:
        adapter = make_adapter(learned_by(module, teacher), description, transforms)
        teacher.adapter = None if adapter is None else adapter.to(module.device, cast(torch.dtype, module.dtype))


def log_teacher_inputs(module: "EvaluatedModule", description: Description) -> None:
    """Log the images that the teachers are given where they are not the student's, and keep them for the result."""
    for teacher in module.teachers:
        if teacher.adapter is None:
            continue
        learned = learned_by(module, teacher)
        size = learned.image_size or description.image_size
        mean = description.mean if learned.mean is None else learned.mean
        std = description.std if learned.std is None else learned.std
        rank_zero_info(
            f"The teacher's images are normalised with {format_statistics(mean, std)}, {size} x {size} pixels, as "
            f"those that it was trained on ({learned.origin}); the student's with "
            f"{format_statistics(description.mean, description.std)}, "
            f"{description.image_size} x {description.image_size}"
        )
        if "teacher_weights" in module.weight_files:
            inputs = {"mean": list(mean), "std": list(std), "image_size": size}
            module.weight_files["teacher_weights"] = replace(module.weight_files["teacher_weights"], inputs=inputs)


def log_other_images(module: "EvaluatedModule", description: Description) -> None:
    """Log it if the initial weights have learnt from images of another normalisation or size than the data's."""
    learned = learned_from(module.network)
    if "weights" not in module.weight_files and learned.class_names is None:
        return  # fresh weights, or weights of unknown origin
    if not learned.normalised_alike(description.mean, description.std):
        rank_zero_info(
            "The initial weights were trained on images normalised with "
            f"{format_statistics(learned.mean, learned.std)} ({learned.origin}); the network now learns from "
            f"{format_statistics(description.mean, description.std)}, the data's"
        )
    if learned.image_size not in (None, description.image_size):
        rank_zero_info(
            f"The initial weights were trained on images of {learned.image_size} x {learned.image_size} pixels "
            f"({learned.origin}), the data have {description.image_size} x {description.image_size}"
        )


def check_weights(module: "EvaluatedModule") -> None:
    """Check the weights that a module evaluates, if these are the option ``weights`` alone, against the data."""
    file = module.weight_files.get("weights")
    if module.description is None and file is not None and file.description is not None:
        check_description(module, read_description(file.description, file.path), f"weights: {file.path}")


def check_description(module: "EvaluatedModule", trained_on: Description, origin: str) -> None:
    """Check what a trained network has learnt against the data of a run that resumes or evaluates it.

    An evaluation normalises images as the network has learnt. Raises UsageError if class names differ.

    Args:
        module: module of the network.
        trained_on: description of the data of its training.
        origin: phrase for the network or its checkpoint.
    """
    data = data_of(module)
    if data is None:
        return
    if trained_on.channels != data.channels:
        raise UsageError(
            f"{origin} was trained on images of {counted(trained_on.channels, 'channel')}, the data have "
            f"{data.channels}: set channels={trained_on.channels} for the data"
        )
    learned = Learned(
        origin=origin,
        class_names=known_class_names(trained_on.class_names),
        image_size=trained_on.image_size,
        mean=trained_on.mean,
        std=trained_on.std,
    )
    require_same_classes(origin, learned, data.description, f"{SAME_CLASSES} as when it was trained")
    if module.trainer.state.fn != "fit" and not learned.normalised_alike(data.mean, data.std):
        rank_zero_info(
            f"The images are normalised with {format_statistics(learned.mean, learned.std)}, as {origin} has learnt, "
            f"instead of {format_statistics(data.mean, data.std)}"
        )
        data.use_statistics(trained_on.mean, trained_on.std)


def log_changed_images(before: Description, now: Description) -> None:
    """Log it if a resumed run continues with images of another normalisation or size."""
    learned = Learned("", image_size=before.image_size, mean=before.mean, std=before.std)
    if not learned.normalised_alike(now.mean, now.std):
        rank_zero_info(
            f"The images were normalised with {format_statistics(before.mean, before.std)}, from now on with "
            f"{format_statistics(now.mean, now.std)}"
        )
    if before.image_size != now.image_size:
        rank_zero_info(f"The images had {before.image_size} pixels on each side, from now on {now.image_size}")
