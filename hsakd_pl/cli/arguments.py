"""Arguments of the command line and the configurations among them, read before anything large is imported."""

import os
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.files import read_text
from hsakd_pl.files.careful import load_yaml
from hsakd_pl.recipes import OVERLAYS, RECIPES

MOST_BYTES = 100_000  # of a configuration; those of this package have 1,000
CLASS_PATH = "class_path"
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
FILE_OPTIONS = ("root", "predict_dir")  # their values may have dots, and are never imported
RATES = ("model.lr", "model.momentum", "model.nesterov", "model.weight_decay")
SCHEDULE = ("model.milestones", "model.warmup_epochs")
LIMITED_BY_TRIALS = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.num_sanity_val_steps",
    "save_every_minutes",
)
# By option, those that it replaces where it is set, to something other than false or 0
REPLACED_BY = {
    "model.optimizer": RATES,
    "model.lr_scheduler": SCHEDULE,
    "optimizer": (*RATES, *SCHEDULE, "model.optimizer", "model.lr_scheduler"),
    "trainer.fast_dev_run": LIMITED_BY_TRIALS,
    "trainer.overfit_batches": ("trainer.limit_train_batches", "trainer.limit_val_batches"),
    "trainer.barebones": ("save_every_minutes",),
}
# By option, the one without which it has no effect, and that one's values without effect
NEEDED_BY = {
    "save_every_minutes": ("trainer.enable_checkpointing", (False,)),
    "trainer.gradient_clip_algorithm": ("trainer.gradient_clip_val", (None, 0)),
}
# Options that only a fit uses; the other commands take them from the configuration of a fit
TRAINING = (
    "save_every_minutes",
    "cache_features",
    "optimizer",
    "lr_scheduler",
    *RATES,
    *SCHEDULE,
    "model.backbone_lr",
    "model.optimizer",
    "model.lr_scheduler",
    "model.teacher_weights",
    "model.projection_weights",
    "data.augment",
    "trainer.max_epochs",
    "trainer.min_epochs",
    "trainer.max_steps",
    "trainer.min_steps",
    "trainer.max_time",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.num_sanity_val_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
PREDICTION = ("data.predict_dir", "data.on_error", "trainer.limit_predict_batches")
# By command, the options that it does not use
UNUSED = {
    "validate": (*TRAINING, *PREDICTION, "trainer.limit_test_batches"),
    "test": (*TRAINING, *PREDICTION, "trainer.limit_val_batches"),
    "predict": (*TRAINING, "trainer.limit_val_batches", "trainer.limit_test_batches", "return_predictions"),
}


def check_files(args: list[str]) -> None:
    """Read all configurations that exist; raises UsageError naming a file that is not one, or the package's missing."""
    for flag, value in pairs(args):
        if flag in ("-c", "--config") and os.path.exists(value):
            configuration(value)
        elif flag in ("-c", "--config"):
            _check_not_of_package(value)


def check_order(args: list[str]) -> None:
    """Raise UsageError for an option whose value a configuration after it replaces."""
    given: dict[str, tuple[str, Any]] = {}  # by dotted name: the flag, and the value
    for flag, value in pairs(args):
        if flag in ("-c", "--config"):
            content = configuration(value) if os.path.exists(value) else {}
            _check_kept(given, dict(_leaves(_without_init_args(content), "")), value)
        elif flag.startswith("--") and not flag.endswith("+"):
            leaves = _leaves(_without_init_args(_as_yaml(value)), _dotted(flag))
            given |= {name: (flag, leaf) for name, leaf in leaves}


def _check_kept(given: Mapping[str, tuple[str, Any]], content: Mapping[str, Any], path: str) -> None:
    for name, (flag, value) in given.items():
        replaced = content.get(name, content.get(f"{name}.{CLASS_PATH}", value))
        is_short_name = isinstance(replaced, str) and replaced.rpartition(".")[2] == value
        if replaced != value and not is_short_name:
            raise UsageError(
                f"{flag} has no effect: {path}, which comes after it, sets {name} to {replaced}; write options after "
                "--config"
            )


def check_effective(args: list[str], chosen: Mapping[str, Any]) -> None:
    """Raise UsageError for an option of the command line without effect, because of the value of another option.

    Args:
        args: arguments of the command line.
        chosen: values of the options of :data:`REPLACED_BY` and of those in :data:`NEEDED_BY`, None where they are not
            set.
    """
    given = _given(args)
    for option, replaced in REPLACED_BY.items():
        if chosen.get(option):
            for flag in _flags_inside(given, replaced):
                raise UsageError(f"{flag} has no effect: {option} replaces it; leave one of them out")
    for option, (needed, values_without_effect) in NEEDED_BY.items():
        if chosen.get(needed) in values_without_effect:
            for flag in _flags_inside(given, (option,)):
                raise UsageError(f"{flag} has no effect without {needed}: set that option, or leave this one out")


def check_used(args: list[str], command: str, ckpt_path: Any) -> None:
    """Raise UsageError for an option of the command line that an evaluation does not use.

    Args:
        args: arguments of the command line.
        command: ``validate``, ``test`` or ``predict``.
        ckpt_path: checkpoint that is evaluated, or None.
    """
    given = _given(args)
    for flag in _flags_inside(given, UNUSED[command]):
        raise UsageError(f"{flag} has no effect in {command}, which does not use it: leave it out")
    for flag in _flags_inside(given, ("model.weights",)):
        if ckpt_path is not None:
            raise UsageError(f"{flag} has no effect: ckpt_path replaces it; leave one of them out")


def _given(args: list[str]) -> dict[str, str]:
    """Return the flags of a command line by their dotted options."""
    return {_dotted(flag): flag for flag, _ in pairs(args) if flag.startswith("--")}


def _flags_inside(given: Mapping[str, str], options: tuple[str, ...]) -> list[str]:
    """Return the flags of some options, or of options inside of these."""
    prefixes = tuple(f"{option}." for option in options)
    return [flag for name, flag in given.items() if name in options or name.startswith(prefixes)]


def _as_yaml(value: str) -> Any:
    """Return the value of an option; text that is not YAML is meant as it is."""
    try:
        return load_yaml(value)
    except yaml.YAMLError:
        return value


def _dotted(flag: str) -> str:
    return ".".join(key for key in flag.removeprefix("--").split(".") if key != "init_args")


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values inside of nested mappings."""
    if not isinstance(content, dict) or not content:
        yield name, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{name}.{key}".strip("."))


def pairs(args: list[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values: the text after an equals sign, or the next argument."""
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        flag, sign, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if sign else following


def configuration(path: str) -> dict[str, Any]:
    """Read a configuration; raises UsageError where the file is not one."""
    if not os.path.exists(path):
        _check_not_of_package(path)
    try:
        content = load_yaml(read_text(path, MOST_BYTES))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a YAML mapping, got a {type(content).__name__}")
    return content


def _check_not_of_package(path: str) -> None:
    """Raise UsageError for a missing configuration of this package: one of its names anywhere, any name in configs/."""
    name = "/".join(Path(path).parts[-2:])
    names = [*(f"{recipe}.yaml" for recipe in RECIPES), *(f"trainer/{path.name}" for path in OVERLAYS.iterdir())]
    if name in names or "configs" in Path(path).parts[:-1]:
        hint = "" if name in names else did_you_mean(name, names)
        raise UsageError(
            f"{path} is missing: {hint}'hsakd recipes configs' writes all configurations of the package there"
        )


def option_tree(args: list[str]) -> dict[str, Any]:
    """Return the values that configurations and options set, later ones replacing earlier ones.

    A class is a dictionary of its options with its import path under ``class_path``, or that path alone.
    """
    tree: dict[str, Any] = {}
    for flag, value in pairs(args):
        if flag in ("-c", "--config"):
            tree = _merged(tree, _without_init_args(configuration(value)))
        elif flag.startswith("--"):
            keys = flag.removeprefix("--").rstrip("+").split(".")  # --trainer.callbacks+=CLASS appends
            branch = _without_init_args(_parsed(flag, value))
            for key in reversed([key for key in keys if key != "init_args"]):
                branch = {key: branch}
            tree = _merged(tree, branch)
    return tree


def class_paths(content: Any, option: str) -> Iterator[tuple[str, str]]:
    """Yield the import paths of classes in the value of an option, each after the option that names it.

    The parser imports a class whose path stands alone as well, and reads texts as YAML. So every text that could be an
    import path counts, except in options of files.
    """
    value = _as_yaml(content) if isinstance(content, str) else content
    if isinstance(value, str) and IMPORT_PATH.fullmatch(value):
        yield option, value
    elif isinstance(value, list):
        for item in value:
            yield from class_paths(item, option)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == CLASS_PATH:
                yield option, str(item)
            elif key not in FILE_OPTIONS:
                yield from class_paths(item, f"{option}.{key}")


def _parsed(flag: str, value: str) -> Any:
    try:
        return load_yaml(value)
    except yaml.YAMLError as error:
        raise UsageError(f"{flag}: {error}") from error


def _without_init_args(content: Any) -> Any:
    """Return configuration values with the ``init_args`` of each class next to its ``class_path``."""
    if isinstance(content, list):
        return [_without_init_args(item) for item in content]
    if not isinstance(content, dict):
        return content
    inner = content.get("init_args")
    options = {key: value for key, value in content.items() if key != "init_args"}
    if isinstance(inner, dict):
        options |= inner
    return {key: _without_init_args(value) for key, value in options.items()}


def _merged(before: Any, after: Any) -> Any:
    """Return ``before`` with the values of ``after``; a class keeps its options if only its path is given again."""
    if isinstance(before, str) and isinstance(after, dict):
        before = {CLASS_PATH: before}
    if isinstance(before, dict) and isinstance(after, str):
        after = {CLASS_PATH: after}
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    return before | {key: _merged(before.get(key), value) for key, value in after.items()}
