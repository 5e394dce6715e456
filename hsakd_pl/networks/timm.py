"""Create timm's models: convolutional ones as staged backbones, others as classifiers."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, did_you_mean, require
from hsakd_pl.files.hub import obstacle
from hsakd_pl.networks.backbone import StagedBackbone, check_side
from hsakd_pl.networks.cut import DROPOUT, CutModel, UncutError, cut, in_sequence, measured_parts, with_dropout
from hsakd_pl.networks.network import Classifier, Network


def make_timm(name: str, num_classes: int, branches: bool, channels: int = 3) -> Network:
    """Create timm's model ``name`` with fresh weights, as a staged backbone if it can be cut into stages.

    Raises UsageError if it cannot but ``branches`` are needed, if timm is not installed, and for an unknown model.
    """
    model = create_model(name, num_classes, channels)
    try:
        return TimmBackbone(deepcopy(model), name, num_classes)
    except UncutError:
        if branches:
            raise
        network = TimmClassifier(model, num_classes)
        network.name = f"timm:{name}"
        network.in_channels = channels
        if "@" in name:
            _, _, side = name.partition("@")
            network.check_image_size(int(side), int(side))
        return network


def create_model(name: str, num_classes: int, channels: int = 3, **options: Any) -> Any:
    """Create a timm model, for images of another side where ``@`` and a number follow its name.

    Its ``pretrained_cfg`` states the images that it takes. timm adapts published weights to other numbers of channels.

    Raises UsageError if timm is not installed, does not know the model, or cannot make it for this side.
    """
    model_name, at, side = name.partition("@")
    if at:
        require(side.isdecimal() and 0 < len(side) < 5, f"network timm:{name}", side, "a side in pixels after @")
        options["img_size"] = int(side)
    if channels != 3:  # of its published weights, and the default of all models
        options["in_chans"] = channels
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"timm:{name} needs timm: pip install 'hsakd_pl[timm]'") from error
    if not timm.is_model(model_name):
        hint = did_you_mean(model_name, timm.list_models(), "timm:")
        raise UsageError(f"unknown network 'timm:{name}': {hint}timm.list_models() lists all names")
    try:
        model: Any = timm.create_model(model_name, num_classes=num_classes, **options)
    except Exception as error:  # a model can raise anything for a side or channels that it cannot have
        if not at and channels == 3 and not isinstance(error, RuntimeError):
            raise
        raise UsageError(f"timm:{name} cannot be created: {' '.join(str(error).split()):.200}") from error
    _, *sides = model.pretrained_cfg["input_size"]
    if at:
        sides = [int(side), int(side)]
    if at or channels != 3:
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, *sides)}
    return model


def input_sides(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the only side in pixels of images that timm's facts state, 0 if there is none, and the least side."""
    only = config["input_size"][-1] if config.get("fixed_input_size") else 0
    least = min((config.get("min_input_size") or (3, 1, 1))[1:])
    return only, min(least, config["input_size"][-1])


def pretrained_weights(name: str, channels: int = 3) -> dict[str, Tensor]:
    """Download the weights that timm publishes for a network, with all their classes, or read them from timm's cache.

    The first layer's are adapted by timm for images of other channels than red, green and blue.

    Raises UsageError for a network that is not timm's, and if the download fails.
    """
    if not name.startswith("timm:"):
        raise UsageError(f"weights: {name} has no weights to download; name a file")
    model = name.removeprefix("timm:")
    with torch.random.fork_rng(devices=[]):  # for initial weights that are replaced
        published = create_model(model, 2).pretrained_cfg
        return _published(name, published, channels)


def _published(name: str, published: Mapping[str, Any], channels: int) -> dict[str, Tensor]:
    """Return the weights that timm's ``pretrained_cfg`` names, with all their classes."""
    repository = published.get("hf_hub_id")
    options: dict[str, Any] = {}
    if not published.get("file") and (repository or published.get("url")):
        hindrance = obstacle(None if repository else published["url"])
        if hindrance is not None:
            copy = _downloaded(repository) if repository else None
            if copy is None:
                raise UsageError(
                    f"weights: those of {name} cannot be downloaded ({hindrance}); check the network, or name a file "
                    "instead of pretrained; with HF_HUB_OFFLINE=1 an earlier download is used and the hub is not asked"
                )
            options["pretrained_cfg_overlay"] = {"file": copy}
    try:
        model = create_model(name.removeprefix("timm:"), published["num_classes"], channels, pretrained=True, **options)
    except Exception as error:  # of the hub's client, of the network, of timm
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"weights: those of {name} cannot be downloaded ({reason:.200}); name a file") from error
    return model.state_dict()


def _downloaded(repository: str) -> str | None:
    """Return the file of weights that was downloaded from a repository of the hub earlier, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(path, str):
            return path
    return None


class TimmClassifier(Classifier):
    """A timm model that cannot be cut into stages; it only returns class logits."""

    def check_image_size(self, height: int, width: int) -> None:
        only, least = input_sides(self.pretrained_cfg)
        check_side(height, width, only, least)
        super().check_image_size(height, width)

    def accepted_side(self) -> int | None:
        side: int = self.pretrained_cfg["input_size"][-1]
        return side


class TimmBackbone(StagedBackbone):
    """A timm model whose last four taps are its stages 1..4, under timm's own keys.

    It consists of the layers of ``model``, each branch of those of a fresh model. The branch of the last stage
    consists of the layers after the last one in that stage that shrinks the map, preceded by a 1x1 convolution and a
    norm where the channels differ.
    """

    def __init__(self, model: Any, name: str, num_classes: int) -> None:
        self.model_name = name
        self._pretrained_cfg = model.pretrained_cfg
        parts, channels, strides = measured_parts(model, name)
        dropout = parts[-1].get(DROPOUT)
        self.dropout = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        cut_model = CutModel(parts, channels, strides, name)
        in_channels = model.pretrained_cfg["input_size"][0]
        super().__init__(in_sequence(parts[0]), channels, strides, num_classes, cut_model, in_channels)
        self.only_size, least = input_sides(model.pretrained_cfg)
        self.least_size = max(self.least_size, least)
        classifier = model.pretrained_cfg["classifier"]
        last_layer = classifier.rpartition(".")[2]  # timm may keep it in a part of its head
        self.published_keys = (
            (r"^(stem|head|stages\.\d+)\.", ""),
            (rf"^{last_layer}\.", f"{classifier}."),
        )

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        return self._pretrained_cfg

    def branch_maker(self) -> CutModel:
        model = create_model(self.model_name, self.num_classes, self.in_channels)
        parts = cut(model)
        parts[-1] = with_dropout(parts[-1], self.dropout)
        return CutModel(parts, self.channels, self.strides, self.model_name)
