"""The network that leaves the workshop: class logits alone, its normalisation inside, its classes by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.data.description import Description, read_description
from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text, replacing
from hsakd_pl.networks import as_network, create_network
from hsakd_pl.networks.registry import trusted
from hsakd_pl.networks.weights import describe, load_weights
from hsakd_pl.ops import COLOURS, FLIPS, ROTATIONS, Transforms, named_transforms
from hsakd_pl.version import __version__

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:

    class PyTorchModelHubMixin:  # type: ignore[no-redef]
        """Stands in for the hub's class where its library is not installed: what is local works all the same."""

        def save_pretrained(self, folder: str | Path) -> None:
            """Write weights and configuration into a folder."""
            self._save_pretrained(Path(folder))  # type: ignore[attr-defined]

        def push_to_hub(self, repo_id: str) -> None:
            """Raise UsageError: this needs the library."""
            raise no_hub(f"pushing to {repo_id}")


WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def no_hub(what: str) -> UsageError:
    """Make the error for what needs a library that is not installed."""
    return UsageError(f"{what} needs huggingface_hub: pip install 'hsakd_pl[hub]'")


class Student(nn.Module, PyTorchModelHubMixin):
    """Maps images (B, 3, S, S), floating point in [0, 1] or uint8, to logits (B, N); in eval mode, without gradients.

    It has the methods of huggingface_hub's ``PyTorchModelHubMixin``. Raises UsageError for images of other numbers, and
    where a network has another number of classes than there are names.

    Args:
        network: a registry name, or a network, which is taken without its branches, and frozen.
        class_names: names of the classes in the order of the logits.
        image_size: S of the images that it was trained for.
        resize: short side of a picture before its centre is cut out.
        mean: of each channel, in [0, 1], which is subtracted.
        std: of each channel, by which it is then divided.
        transforms: those that a prediction compares, by the package's names; by default the network's own.
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
    ) -> None:
        super().__init__()
        self.description = Description(list(class_names), image_size, resize, tuple(mean), tuple(std))
        made = create_network(network, len(class_names), branches=False) if isinstance(network, str) else network
        self.network = as_network(made, len(class_names)).without_branches
        if self.network.num_classes != len(class_names):
            raise UsageError(f"class_names: {len(class_names)} names for {describe(self.network)}: give one a class")
        self.network.check_image_size(image_size, image_size)
        if transforms is not None:
            self.network.transforms = known_transforms(transforms)
        for name, numbers in (("channel_mean", mean), ("channel_std", std)):  # config.json keeps them
            self.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        self.card = ""  # text of the README.md beside the weights
        self.eval().requires_grad_(False)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the logits."""
        return self.description.class_names

    @property
    def image_size(self) -> int:
        """Side S of the images that the network was trained for."""
        return self.description.image_size

    @property
    def transform(self) -> v2.Transform:
        """RGB picture of any size -> uint8 (3, S, S), as the test images were made."""
        return self.description.transform

    def forward(self, images: Tensor) -> Tensor:
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            raise UsageError(f"images are {images.dtype}: give floating point numbers in [0, 1], or uint8")
        scale = 255 if images.dtype == torch.uint8 else 1
        return self.network((images.to(self.channel_mean.dtype) / scale - self.channel_mean) / self.channel_std)

    def config(self) -> dict[str, Any]:
        """Give what ``config.json`` holds: all that makes this student again but its weights."""
        versions = {"hsakd_pl": __version__}
        versions |= {package.__name__: str(package.__version__) for package in (torch, torchvision)}
        named = {"network": self.network.name, "transforms": self.network.transforms.name}
        return {**named, **self.description.saved(), "versions": versions}

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory)

    def generate_model_card(self, **options: Any) -> Any:
        """Give the card that was loaded with the weights, or that of huggingface_hub."""
        from huggingface_hub import ModelCard

        return ModelCard(self.card) if self.card else super().generate_model_card(**options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, network: str | nn.Module | None = None, **hub: Any
    ) -> "Student":
        """Load a student as :func:`load_student`; ``hub``: options of ``huggingface_hub.snapshot_download``."""
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.is_dir():
            folder = download(str(pretrained_model_name_or_path), **hub)
        path = folder / CONFIG
        try:
            config = json.loads(read_text(path))
            description = read_description(config, str(path))
            made = trusted(config.get("network"), str(path)) if network is None else network
        except ValueError as error:
            raise error if isinstance(error, UsageError) else UsageError(f"{path} is no JSON ({error})") from error
        if not isinstance(made, str | nn.Module):
            raise UsageError(f"{path} has no name of its network, which was made by hand: give it as network=")
        student = cls(made, **description.saved(), transforms=config.get("transforms"))
        load_weights(student, folder / WEIGHTS)
        student.card = read_text(folder / CARD) if (folder / CARD).is_file() else ""
        return student


def known_transforms(name: str) -> Transforms:
    """Find transformations by the package's names; only the identity for others, since a file has no code run."""
    own = {each.name for each in (ROTATIONS, FLIPS, COLOURS)}
    known = {factor.strip() for factor in str(name).split("*")} <= own
    return named_transforms(name) if known else Transforms(1, ROTATIONS.apply, "identity")


def save(student: Student, folder: Path, **further: Any) -> None:
    """Write ``model.safetensors`` and ``config.json``, in which ``further`` entries stand."""
    with replacing(folder / CONFIG) as file:
        json.dump({**student.config(), **further}, file, indent=1, ensure_ascii=False)
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in student.state_dict().items()}
    save_file(own, folder / WEIGHTS, {"format": "pt"})


def download(repository: str, **options: Any) -> Path:
    """Fetch a student's files from the hub and give the folder that holds them; UsageError where that fails."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise no_hub(f"{repository} is no folder here, and to fetch it") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG, CARD], **options))
    except (OSError, ValueError) as error:  # no network, no such repository, no possible name
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{repository} is neither a folder here nor a model that could be fetched from the hub ({reason}): check it"
        ) from error


def load_student(source: str | Path, network: str | nn.Module | None = None) -> Student:
    """Load an exported student, in eval mode, from its folder or by its id on Hugging Face's hub.

    ``network``: one of the same architecture, or its import path, where the exported one is not registered. Raises
    UsageError for files that are missing, damaged or of another network, and for a name that
    :func:`hsakd_pl.create_network` does not know or, in a file, that is an import path.
    """
    return Student.from_pretrained(source, network=network)
