"""The exported network: it returns class logits, normalises its input, and knows the names of its classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn as nn
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import local_path, read_text, replacing
from hsakd_pl.files.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, download, no_hub
from hsakd_pl.files.schema import Fields, Flag, Items, Number, Text, parse_json
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.networks import as_network, create_network
from hsakd_pl.networks.bounded import limited_by
from hsakd_pl.networks.registry import trusted
from hsakd_pl.networks.weights import describe, load_weights, tensors_of
from hsakd_pl.ops import COLOURS, FLIPS, ROTATIONS, Transforms, named_transforms
from hsakd_pl.version import __version__

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:

    class PyTorchModelHubMixin:  # type: ignore[no-redef]
        """Replaces the class of huggingface_hub if that is not installed; everything local works without it."""

        def save_pretrained(self, folder: str | Path) -> None:
            """Write weights and configuration into a folder."""
            self._save_pretrained(Path(folder))  # type: ignore[attr-defined]

        def push_to_hub(self, repo_id: str) -> None:
            """Raise UsageError, because this needs huggingface_hub."""
            raise no_hub(f"pushing to {repo_id}")


SIZE = Number(1, 1e9, whole=True)
CONFIG_FIELDS = Fields(
    {
        "network": Text(optional=True),
        "transforms": Text(optional=True),
        "class_names": Items(Text()),
        "image_size": SIZE,
        "resize": SIZE,
        "mean": Items(Number(-1e9)),
        "std": Items(Number(-1e9)),
        "input": Text(),
        "weights_digest": Text(),
        "predictions_digest": Text(),
        "embedding": Flag(),
        "versions": Fields(others=Text()),
    },
    required=("class_names", "image_size", "resize", "mean", "std"),
)


class Student(nn.Module, PyTorchModelHubMixin):
    """Map images (B, C, S, S), floating point in [0, 1] or uint8, to logits (B, N), or to embeddings (B, N).

    The student is in eval mode and frozen. It has the methods of huggingface_hub's ``PyTorchModelHubMixin``. Raises
    UsageError for images of other dtypes or channels, and if the numbers of names and of means are not the network's
    numbers of classes and of channels.

    Args:
        network: registered name, or a network, which is frozen, in float32, and used without its branches.
        class_names: names of the classes in the order of the logits.
        image_size: side S of the images that the network was trained on.
        resize: short side of an image before its centre is cropped.
        mean: mean of each of the C channels in [0, 1], which is subtracted from the images.
        std: standard deviation of each channel, which the images are divided by.
        transforms: name of the transformations that ``predict`` compares; by default those of the network.
        embedding: the outputs are an embedding, and ``class_names`` the numbers of its dimensions.

    Examples:
        >>> student = Student("resnet20", ["cat", "dog"], 32, 36, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> student(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([1, 2])
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(
        self,
        network: str | nn.Module,
        class_names: list[str],
        image_size: int,
        resize: int,
        mean: Sequence[float],
        std: Sequence[float],
        transforms: str | None = None,
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.embeds = embedding
        self.description = Description(list(class_names), image_size, resize, tuple(mean), tuple(std))
        if isinstance(network, str):
            network = create_network(network, len(class_names), branches=False, channels=self.channels)
        self.network = as_network(network, len(class_names), self.channels).without_branches.float()
        if self.network.in_channels != self.channels:
            raise UsageError(
                f"mean: {describe(self.network)} takes images of {counted(self.network.in_channels, 'channel')}, got "
                f"statistics of {self.channels}"
            )
        if self.network.num_classes != len(class_names):
            raise UsageError(f"class_names: {describe(self.network)} needs one name per class, got {len(class_names)}")
        self.network.check_image_size(image_size, image_size)
        if transforms is not None:
            self.network.transforms = transforms_of_package(transforms)
        # not persistent, because config.json contains them
        self.register_buffer("channel_mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("channel_std", torch.tensor(std)[:, None, None], persistent=False)
        self.card = ""  # text of the README.md next to the weights
        self.card_digest = ""  # of the weights that the card describes
        self.eval().requires_grad_(False)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the logits."""
        return self.description.class_names

    @property
    def image_size(self) -> int:
        """Side S of the images that the network was trained on."""
        return self.description.image_size

    @property
    def channels(self) -> int:
        """Number of channels C of the images, with which :func:`hsakd_pl.open_image` opens pictures."""
        return self.description.channels

    @property
    def transform(self) -> v2.Transform:
        """Transform of the test images: opened picture of any size -> uint8 (C, S, S)."""
        return self.description.transform

    def forward(self, images: Tensor) -> Tensor:
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            raise UsageError(f"images are {images.dtype}; pass floating point numbers in [0, 1], or uint8")
        if images.shape[-3] not in (1, self.channels):  # grey images are taken for equal channels
            raise UsageError(
                f"images have {images.shape[-3]} channels, the student takes {self.channels}: open pictures by "
                f"open_image(path, channels={self.channels})"
            )
        return self.network(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images as the network takes them, with the mean and standard deviation of its training images."""
        scale = 255 if images.dtype == torch.uint8 else 1
        return (images.to(self.channel_mean.dtype) / scale - self.channel_mean) / self.channel_std

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``: everything needed to create this student but its weights."""
        versions = {
            "hsakd_pl": __version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        }
        names = {"network": self.network.name, "transforms": self.network.transforms.name}
        kind = {"embedding": True} if self.embeds else {}
        return names | self.description.saved() | kind | {"weights_digest": self.digest(), "versions": versions}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> Any:
        """Write weights, configuration and card into a folder, as huggingface_hub does.

        Raises UsageError if the folder has an export of other weights.

        Args:
            save_directory: the folder.
            options: options of huggingface_hub.
        """
        earlier = Path(save_directory, CONFIG_FILE)
        if earlier.is_file() and read_config(earlier).get("weights_digest") != self.digest():
            raise UsageError(
                f"{save_directory} has the export of other weights, whose {CARD_FILE} and graphs would stay: save into "
                "another folder"
            )
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory)

    def digest(self) -> str:
        """Return the digest of the weights."""
        return weights_digest(self.state_dict())

    def generate_model_card(self, **options: Any) -> Any:
        """Return the card that was loaded with the weights, or that of huggingface_hub if they have changed since."""
        from huggingface_hub import ModelCard

        is_of_weights = bool(self.card) and self.card_digest == self.digest()
        if is_of_weights:
            check_front_matter(self.card)
        return ModelCard(self.card) if is_of_weights else super().generate_model_card(**options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, network: str | nn.Module | None = None, **hub: Any
    ) -> "Student":
        """Load a student as :func:`load_student` does.

        Args:
            pretrained_model_name_or_path: folder of an export, or id on Hugging Face's hub.
            network: network of the same architecture, or its name or import path.
            hub: options of ``huggingface_hub.snapshot_download``.
        """
        folder = local_path("export", pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(str(pretrained_model_name_or_path), **hub)
        elif hub.get("revision") is not None:
            raise UsageError(f"revision: {folder} is a folder here, not a model on the hub: leave revision out")
        path = folder / CONFIG_FILE
        config = read_config(path)
        description = read_description(config, str(path))
        if network is None:
            network = trusted(config.get("network"), str(path))
        if not isinstance(network, str | nn.Module):
            raise UsageError(f"{path} does not name its network, which was not created by name; pass it as network=")
        if not (folder / WEIGHTS_FILE).is_file():
            raise UsageError(f"{folder} has no {WEIGHTS_FILE}: export the student with the format safetensors as well")
        with limited_by(folder / WEIGHTS_FILE):
            kind = {"transforms": config.get("transforms"), "embedding": config.get("embedding", False)}
            student = cls(network, **description.saved(), **kind)
        load_weights(student, folder / WEIGHTS_FILE)
        digest = student.digest()
        if (folder / CARD_FILE).is_file() and config.get("weights_digest", digest) == digest:
            student.card = read_text(folder / CARD_FILE)
            student.card_digest = digest
        return student


def check_front_matter(card: str) -> None:
    """Raise UsageError if the metadata of a card, which may have been edited by hand, cannot be read."""
    import yaml

    _, *parts = card.split("---\n", 2) if card.startswith("---\n") else ["", ""]
    try:
        if len(parts) < 2 or not isinstance(yaml.safe_load(parts[0]), dict):
            raise ValueError("no fields between two lines of ---")
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{CARD_FILE}: its metadata are not valid ({reason:.120}): repair or remove the file"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``; raises UsageError if it is not that of an export."""
    text = read_text(path)
    try:
        config = parse_json(text)
        CONFIG_FIELDS.check(config)
    except ValueError as error:
        raise UsageError(f"{path} is not the configuration of an export ({error!s:.200}): export it again") from error
    return config


def transforms_of_package(name: str) -> Transforms:
    """Return the package's transformations of this name, or only the identity, because a file must not choose code."""
    names_of_package = {transforms.name for transforms in (ROTATIONS, FLIPS, COLOURS)}
    factors = {factor.strip() for factor in str(name).split("*")}
    if factors <= names_of_package:
        return named_transforms(name)
    return Transforms(1, ROTATIONS.apply, "identity")


def save(student: Student, folder: Path, **entries: Any) -> None:
    """Write ``model.safetensors`` and ``config.json``, with additional ``entries``, into a folder."""
    with replacing(folder / CONFIG_FILE) as file:
        json.dump(student.config() | entries, file, indent=1, ensure_ascii=False)
    tensors = tensors_of(student.state_dict())
    weights = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with replacing(folder / WEIGHTS_FILE, "wb") as file:
        file.write(safetensors.torch.save(weights, {"format": "pt"}))


def load_student(source: str | Path, network: str | nn.Module | None = None, revision: str | None = None) -> Student:
    """Load an exported student, in eval mode, from its folder or from Hugging Face's hub.

    Args:
        source: folder of an export, or id on the hub.
        network: network of the same architecture, or its name or import path, if the exported one is not registered.
        revision: branch, tag or commit on the hub; by default its main branch.

    Returns:
        Student, an ``nn.Module`` that maps images to class logits (B, N).

    Raises:
        UsageError: for files that are missing, damaged or of another network, and for a network that a file names but
            that is not registered.

    Examples:
        >>> torch.save(create_network("resnet8", num_classes=10).state_dict(), "resnet8.pth")
        >>> export = export_student(
        ...     "resnet8.pth", "exported", ["safetensors"], network="resnet8", data=DigitsDataModule()
        ... )
        >>> student = load_student("exported")
        >>> student(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """
    return Student.from_pretrained(source, network=network, revision=revision)
