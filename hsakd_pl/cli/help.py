"""The part of the help of ``fit``, ``validate``, ``test`` and ``predict`` about the package's classes and options."""

from argparse import SUPPRESS
from typing import Any

from hsakd_pl import data, methods, modules
from hsakd_pl.cli.commands import COMMANDS
from hsakd_pl.networks import list_networks

BASE_CLASSES = ("HSAKDModule", "DistilledModule", "ImageDataModule", "FeatureDataModule")  # not for a command line
# Titles of the groups of options, by what their names begin with, in the order in which they are shown
TITLES = {
    "": "Options",
    "model": "Model",
    "data": "Data",
    "optimizer": "Optimizer and schedule, in place of the recipe's",
    "trainer": "Lightning's trainer",
}
SENTENCES = {
    "config": "Configuration in YAML; several may be given, and later ones replace values of earlier ones.",
    "print_config": "Print the whole configuration as it would take effect, and exit.",
    "seed_everything": "Seed of weights, data order and augmentation.",
    "ckpt_path": "Checkpoint to resume from or to evaluate: last, best, hpc or a file.",
    "weights_only": "Let PyTorch refuse checkpoints that hold more than tensors and plain values.",
    "model.help": "Show the options of a class, such as DKDModule or mine.Module, and exit.",
    "data.help": "Show the options of a class, such as CIFAR100DataModule, and exit.",
    "optimizer": "Class path, such as torch.optim.AdamW; --optimizer.lr and so on set its options.",
    "lr_scheduler": "Class path, such as torch.optim.lr_scheduler.CosineAnnealingLR.",
    "trainer.default_root_dir": "Folder of the run: checkpoints, config.yaml, metrics.csv, curves and result.json.",
    "trainer.logger": "Loggers next to metrics.csv; see configs/trainer/tensorboard.yaml, wandb.yaml and mlflow.yaml.",
    "trainer": SUPPRESS,
    "model.init_args.num_classes": SUPPRESS,  # set by the data
    "model.init_args.channels": SUPPRESS,
}


def describe_command(parser: Any, name: str) -> None:
    """Set the description and the help texts of a command's parser, and put the package's options first."""
    command = COMMANDS[name]
    parser.description = f"{command.summary} Example: hsakd {name} {command.example}"
    parser.epilog = f"Networks: {', '.join(network_names())}, timm:MODEL, or the import path of a class or function."
    sentences = SENTENCES | {
        group: f"Class: {', '.join(classes(group))}, or an import path." for group in ("model", "data")
    }
    order = list(TITLES)
    parser._action_groups.sort(key=lambda group: order.index(_prefix(group)))
    titles = TITLES.copy()
    for group in parser._action_groups:
        if group._group_actions:
            group.title = titles.pop(_prefix(group), None)  # the first of several groups has the title
        for action in group._group_actions:
            action.help = sentences.get(action.dest, action.help)
            if action.dest in ("model", "data", "optimizer", "lr_scheduler"):
                action.metavar = "CLASS"


def network_names() -> list[str]:
    """Return the names of registered networks, without import paths."""
    return [name for name in list_networks() if "." not in name]


def classes(group: str) -> dict[str, type]:
    """Return the package's classes for ``--model`` or ``--data`` by their names."""
    homes = [data] if group == "data" else [modules, methods]
    names = [(home, name) for home in homes for name in home.__all__ if name.endswith("Module")]
    return {name: getattr(home, name) for home, name in names if name not in BASE_CLASSES}


def _prefix(group: Any) -> str:
    """Return the key of ``TITLES`` for a group of options."""
    prefixes = {action.dest.partition(".")[0] for action in group._group_actions}
    if "lr_scheduler" in prefixes:
        return "optimizer"
    return next((name for name in TITLES if name in prefixes), "")
