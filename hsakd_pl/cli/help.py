"""What --help shows: of all commands, of one, and of a class, read off the source in a moment."""

import re
from textwrap import fill

from hsakd_pl.cli.arguments import settings
from hsakd_pl.cli.commands import COMMANDS, PICTURES, parser_of, width
from hsakd_pl.cli.signatures import Option, networks, options, summary
from hsakd_pl.cli.source import find, public

BASES = ("HSAKDModule", "DistilledModule", "ImageDataModule", "FeatureDataModule")  # not to be named on a command line
TRAINER = "pytorch_lightning.Trainer"
COLUMN, NARROW = 34, 26  # characters left of sentences on options, and of others
OWN = {  # options of the commands themselves, of fit alone those with minutes and features
    "config": Option("", "a configuration in YAML; several are laid over each other, options over all of them"),
    "ckpt_path": Option("", "the checkpoint that a run resumes or is measured by: last, best, hpc or a file"),
    "seed_everything": Option("0", "seed of weights, order and augmentation"),
    "save_every_minutes": Option("10.0", "between two checkpoints within an epoch"),
    "cache_features": Option("false", "show a probe's frozen network each image but once"),
    "print_config": Option("", "print the whole configuration, as it would take effect, and end"),
}
FIT_ALONE = ("save_every_minutes", "cache_features")
USED = {  # of Lightning's trainer, as it behaves here
    "max_epochs": "how long to train, which a recipe says",
    "default_root_dir": "folder of the run: checkpoints, config.yaml, metrics.csv, curves, result.json",
    "accelerator": "cpu, gpu, mps, or what the machine has",
    "devices": "how many, or which ([0,2]); torchrun's number where torchrun starts the run",
    "num_nodes": "machines; torchrun's number likewise",
    "strategy": "how devices work together: ddp where there are several",
    "precision": "32-true, bf16-mixed or 16-mixed",
    "accumulate_grad_batches": "batches that make one step",
    "gradient_clip_val": "the longest gradient; longer ones are cut to it",
    "sync_batchnorm": "whether batch statistics are those of all GPUs together",
    "deterministic": "whether a run can be repeated bit by bit, more slowly",
    "check_val_every_n_epoch": "how often to validate",
    "limit_train_batches": "of an epoch: a number of batches, or a part such as 0.1; likewise limit_val_batches, "
    "limit_test_batches and limit_predict_batches",
    "max_time": "DD:HH:MM:SS after which training ends",
    "fast_dev_run": "a trial: so many batches of each kind, nothing is kept",
    "logger": "besides metrics.csv: configs/trainer/tensorboard.yaml, wandb.yaml and mlflow.yaml have some",
    "callbacks": "class paths of more callbacks, of Lightning or your own",
    "enable_progress_bar": "whether progress is shown",
}
DEFAULTS = {"default_root_dir": "runs", "precision": "32-true", "enable_model_summary": "false"}  # differing here


def help_for(args: list[str]) -> str | None:
    """Give the help that arguments ask for; None where they do not, or where it is not ours to tell."""
    if not args or args[0] in ("-h", "--help"):
        return all_commands()
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        return None
    wanted = {"-h", "--help"} & {*rest}
    pictures = name == "predict" and rest and not rest[0].startswith("-")
    module = PICTURES if pictures else COMMANDS[name].module
    if module:
        return parser_of(name, module).format_help().rstrip() if wanted else None
    for number, arg in enumerate(rest):
        if found := re.fullmatch(r"--(model|data|trainer)\.help(?:=(.*))?", arg):
            values = rest[number + 1 :] if found[2] is None else [found[2], *rest[number + 1 :]]
            return one_class(found[1], "".join(values), settings(rest[:number])) if len(values) <= 1 else None
    return one_command(name, settings(rest)) if wanted else None


def all_commands() -> str:
    """Tell what the commands do, with an example each."""
    lines = ["usage: hsakd COMMAND [OPTIONS]     (hsakd is python main.py, or python -m hsakd_pl)", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<9} {_wrapped(command.does, 12)}", f"{'':12}hsakd {name} {command.example}"]
    more = (
        "More: hsakd COMMAND --help, and hsakd fit --model.help CLASS or --data.help CLASS of a class and its options."
    )
    return "\n".join([*lines, "", fill(more, width())])


def one_command(name: str, given: dict[str, str]) -> str:
    """Tell what ``fit`` and its like take; of a model and data that are ``given``, their own options."""
    parts = [
        f"usage: hsakd {name} [--config FILE ...] [--OPTION VALUE ...]\n\n{COMMANDS[name].does}\n",
        f"  hsakd {name} {COMMANDS[name].example}\n",
    ]
    if name == "predict":
        parts[0] += "Without configuration: hsakd predict SOURCE PICTURES, see hsakd predict SOURCE PICTURES --help\n"
    own = {key: option for key, option in OWN.items() if name == "fit" or key not in FIT_ALONE}
    parts += [_table("", own, given)]
    for group in ("model", "data"):
        path = _path(group, given[group]) if group in given else None
        parts += ["", _class(group, path, given) if path else _classes(group)]
    used = {key: Option(_default(key), said) for key, said in USED.items()}
    parts += ["\nLightning's trainer, of which --trainer.help lists all options", _table("trainer", used, given)]
    return "\n".join([*parts, "", _network_names()])


def one_class(group: str, name: str, given: dict[str, str]) -> str | None:
    """Tell what a class takes, by its path or its name alone; without one, which classes there are."""
    if group == "trainer":
        every = {key: Option(_default(key), option.sentence) for key, option in options(TRAINER).items()}
        return f"Lightning's trainer\n{_table(group, every, given)}"
    if not name:
        return _classes(group)
    path = _path(group, name)
    shown = [_class(group, path, given), *([""] if group == "data" else ["", _network_names()])] if path else []
    return "\n".join(shown).rstrip() or None


def _class(group: str, path: str, given: dict[str, str]) -> str:
    return f"{fill(f'--{group} {path}: {summary(path)}', width())}\n{_table(group, options(path), given)}"


def classes(group: str) -> dict[str, str]:
    """The package's classes for ``model`` or ``data``: name -> import path."""
    paths = [f"{home}.{name}" for home in ("hsakd_pl", "hsakd_pl.methods") for name in public(home)]
    found = {path.rpartition(".")[2]: path for path in paths if path.endswith("Module")}
    return {
        name: path
        for name, path in found.items()
        if name not in BASES and (group == "data") == name.endswith("DataModule")
    }


def _path(group: str, name: str) -> str | None:
    """The import path of a class whose source can be read, by its name alone where it is ours."""
    path = classes(group).get(name, name)
    return path if find(path) else None


def _classes(group: str) -> str:
    lines, methods = [f"--{group} CLASS, with its options, which --{group}.help CLASS lists"], []
    for name, path in classes(group).items():
        if ".methods." in path:
            methods.append(name)
        else:
            lines.append(_line(name, summary(path).partition(", Eq")[0], NARROW))
    if methods:
        lines.append(_line("methods to compare with", ", ".join(methods), NARROW))
    return "\n".join([*lines, _line("your own", "its import path, from the working folder too: mine.Class", NARROW)])


def _network_names() -> str:
    names = sorted(networks(), key=lambda name: [part.zfill(3) for part in re.split(r"(\d+)", name)])
    path = "timm:<model>, or the import path of a class or function: mine.MobileNetV3Small"
    return "\n".join(["Networks", _line("by name", ", ".join(names), 12), _line("others", path, 12)])


def _table(group: str, taken: dict[str, Option], given: dict[str, str]) -> str:
    """One option a line, with what it is set to, or else its default, and its sentence."""
    lines = []
    for name, (default, sentence) in taken.items():
        key = f"{group}.{name}".strip(".")
        value = given.get(key, default)
        said = f"{sentence} (required)" if value is None else sentence
        lines.append(_line(f"--{key} {value or ''}".rstrip(), said))
    return "\n".join(lines)


def _default(name: str) -> str | None:
    return DEFAULTS.get(name, options(TRAINER)[name].default)


def _line(left: str, right: str, column: int = COLUMN) -> str:
    text = _wrapped(right, column)
    return f"  {left:<{column - 3}} {text}" if len(left) < column - 2 else f"  {left}\n{'':{column}}{text}"


def _wrapped(text: str, indent: int) -> str:
    filled = fill(text, width() - indent, break_on_hyphens=False, break_long_words=False)
    return filled.replace("\n", f"\n{'':{indent}}")
