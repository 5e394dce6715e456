"""A recipe: the configuration of one experiment, and the accuracy published for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from hsakd_pl.recipes.data_sets import PUBLISHED_DATA, PublishedData

# Options of a module that decide how weights are updated; a checkpoint restores them with its optimizer
RATES = ("lr", "backbone_lr", "momentum", "nesterov", "weight_decay", "milestones", "warmup_epochs")


@dataclass(frozen=True)
class Setting:
    """The training of a group of recipes: SGD with momentum 0.9 on one data set.

    Attributes:
        data: name of the data module, without ``DataModule``.
        root: folder of the data set.
        epochs: length of the training.
        lr: learning rate, divided by ten at each milestone.
        nesterov: use Nesterov momentum.
        weight_decay: weight decay of SGD.
        milestones: epochs at which the learning rate falls.
        batch_size: images per step, over all devices.
    """

    data: str
    root: str
    epochs: int
    lr: float
    nesterov: bool
    weight_decay: float
    milestones: tuple[int, ...]
    batch_size: int


# Sec. 4 of the paper, and its published code
CIFAR100 = Setting(
    data="CIFAR100",
    root="data",
    epochs=240,
    lr=0.05,
    nesterov=True,
    weight_decay=5e-4,
    milestones=(150, 180, 210),
    batch_size=64,
)
FROZEN_TEACHER = replace(CIFAR100, epochs=100, milestones=(30, 60, 90))
STL10 = replace(FROZEN_TEACHER, data="STL10", root="data/stl10", lr=0.1, weight_decay=0.0)
# The first stage of SSKD, in its published code
PROJECTION = replace(CIFAR100, epochs=60, milestones=(30, 45))
SMALL = replace(CIFAR100, epochs=30, milestones=(19, 22, 26), nesterov=False)
PHOTOS = replace(CIFAR100, data="ImageFolder", root="photos", epochs=60, milestones=(40, 50), lr=0.02, batch_size=16)
# A recipe takes the first of these whose key its name begins with, otherwise that of CIFAR-100.
SETTINGS = {
    "cifar100/teacher_frozen": FROZEN_TEACHER,
    "cifar100/sskd_projection": PROJECTION,
    "cifar100": CIFAR100,
    # The protocol of the tables in CRD's and later papers: no Nesterov momentum
    "classic/teacher_frozen": replace(FROZEN_TEACHER, nesterov=False),
    "classic/sskd_projection": replace(PROJECTION, nesterov=False),
    "classic": replace(CIFAR100, nesterov=False),
    # MLKD's published runs: half of the usual rate, and longer ones with the same milestones
    "views/mlkd_480": replace(CIFAR100, nesterov=False, lr=0.025, epochs=480),
    "views/mlkd_960": replace(CIFAR100, nesterov=False, lr=0.025, epochs=960),
    "views/mlkd": replace(CIFAR100, nesterov=False, lr=0.025),
    "views": replace(CIFAR100, nesterov=False),
    # WKD's published runs differ from the classic protocol in this
    "nesterov": CIFAR100,
    # An eighth of the classic protocol; epochs are rounded
    "small/sskd_projection": replace(SMALL, epochs=8, milestones=(4, 6)),
    "small/mlkd": replace(SMALL, lr=0.025),
    "small/wkd": replace(SMALL, nesterov=True),
    "small": SMALL,
    "imagenet": replace(
        FROZEN_TEACHER,
        data="ImageNet",
        root="data/imagenet",
        lr=0.1,
        nesterov=False,
        weight_decay=1e-4,
        batch_size=256,
    ),
    "stl10": STL10,
    "tinyimagenet": replace(STL10, data="TinyImageNet", root="data/tinyimagenet"),
    "digits": replace(CIFAR100, data="Digits", epochs=8, milestones=(6,)),
    # The user's own photographs: networks that start from published weights
    "images/teacher": replace(PHOTOS, epochs=20, milestones=(13, 17)),
    "images": PHOTOS,
}
# Networks that train with a learning rate of 0.01 on CIFAR-100: Sec. 4.1 of the paper
SMALL_LR_NETWORKS = ("mobilenetv2", "mobilenetv2_stride2", "shufflenetv1", "shufflenetv2")
SMALL_LR = 0.01


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment as a configuration of ``fit``.

    Attributes:
        name: folder and experiment, for example ``cifar100/baseline_resnet20``.
        title: what the experiment is, in a few words.
        published: accuracy in percent as published, for example ``"78.67 +- 0.20"``, or ``""``.
        model: class path and options of the module, as in a configuration.
        data: class path and options of the data module, as in a configuration.
        trainer: options of the trainer.
        needs: recipe whose result each option of the model names, for example ``{"teacher_weights": "cifar100/..."}``.
        same_seed: the needed runs have the seed of this one, as a probe has that of its student; otherwise 0.
    """

    name: str
    title: str
    published: str
    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    needs: dict[str, str] = field(default_factory=dict)
    same_seed: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of ``fit``."""
        return {"model": self.model, "data": self.data, "trainer": self.trainer}

    @property
    def published_data(self) -> PublishedData | None:
        """The data that the published accuracy belongs to; None where nobody has published one on a known data set."""
        name = self.data["class_path"].rpartition(".")[2].removesuffix("DataModule")
        return PUBLISHED_DATA.get(name)

    @property
    def text(self) -> str:
        """The configuration as YAML, with the title as a comment."""
        title = f"{self.title}; published: {self.published}" if self.published else self.title
        return f"# {title}\n{yaml.dump(self.config, Dumper=_Dumper, sort_keys=False, width=120)}"


class _Dumper(yaml.SafeDumper):
    """Write mappings with one entry per line, and lists such as milestones in one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True),
)


def checkpoint_of(recipe: str) -> str:
    """Return the path at which a run of a recipe leaves its result."""
    return f"runs/{recipe}/last.ckpt"


def setting_of(name: str) -> Setting:
    """Return the setting of the recipe called ``name``."""
    setting = next((setting for prefix, setting in SETTINGS.items() if name.startswith(prefix)), CIFAR100)
    if setting.data == "CIFAR100" and name.endswith(SMALL_LR_NETWORKS):
        return replace(setting, lr=SMALL_LR)
    return setting


def make_recipe(
    name: str,
    *,
    title: str,
    module: str,
    options: Mapping[str, Any],
    needs: Mapping[str, str] | None = None,
    data_options: Mapping[str, Any] | None = None,
    published: str = "",
) -> Recipe:
    """Make a recipe with the setting that its name calls for.

    Its configuration states only what differs from the defaults of the classes.

    Args:
        name: folder and experiment.
        title: what the experiment is, in a few words.
        module: class path of the module.
        options: options of the module, without those of ``needs``.
        needs: recipe whose result each option of the module names.
        data_options: options of the data module.
        published: accuracy in percent, or ``""``.
    """
    setting = setting_of(name)
    is_probe = "LinearProbeModule" in module
    needs = dict(needs or {})
    weights = {option: checkpoint_of(recipe) for option, recipe in needs.items()}
    default_setting = STL10 if is_probe else CIFAR100  # the defaults of the modules
    training = _differing(setting, default_setting, ("lr", "nesterov", "weight_decay", "milestones"))
    location = _differing(setting, CIFAR100, ("root", "batch_size"))
    return Recipe(
        name=name,
        title=title.replace("_imagenet", ""),
        published=published,
        model=_part(module, {**options, **weights, **training}),
        data=_part(f"hsakd_pl.{setting.data}DataModule", {**(data_options or {}), **location}),
        trainer={"max_epochs": setting.epochs, "default_root_dir": f"runs/{name}"},
        needs=needs,
        same_seed=is_probe,
    )


def _part(class_path: str, options: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"class_path": class_path}
    if options:
        part["init_args"] = options
    return part


def _differing(setting: Setting, default: Setting, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the named values of a setting that differ from the default, tuples as lists."""
    options = {}
    for name in names:
        value = getattr(setting, name)
        if value != getattr(default, name):
            options[name] = list(value) if isinstance(value, tuple) else value
    return options
