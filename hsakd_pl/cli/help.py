"""What the help of ``fit``, ``validate``, ``test`` and ``predict`` says of the package's own classes and options."""

from argparse import SUPPRESS
from typing import Any

import hsakd_pl
from hsakd_pl import methods
from hsakd_pl.cli.commands import COMMANDS
from hsakd_pl.networks import list_networks

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
}


def describe_command(parser: Any, name: str) -> None:
    """Give the parser of a command its description and the package's sentences, and put the package's options first."""
    command = COMMANDS[name]
    parser.description = f"{command.summary} Example: hsakd {name} {command.example}"
    parser.epilog = f"Networks: {', '.join(list_networks())}, timm:MODEL, or the import path of a class or function."
    sentences = SENTENCES | {
        group: f"Class: {', '.join(class_names(group))}, or an import path." for group in ("model", "data")
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


def class_names(group: str) -> list[str]:
    """Return the names of the package's classes for ``--model`` or ``--data``."""
    names = [name for name in [*hsakd_pl.__all__, *methods.__all__] if name.endswith("Module")]
    return [name for name in names if name.endswith("DataModule") == (group == "data")]


def _prefix(group: Any) -> str:
    """Return the key of ``TITLES`` for a group of options."""
    prefixes = {action.dest.partition(".")[0] for action in group._group_actions}
    if "lr_scheduler" in prefixes:
        return "optimizer"
    return next((name for name in TITLES if name in prefixes), "")
