"""Explanations, in one line, of arguments that jsonargparse refuses.

Nothing here decides that arguments are wrong, and no message is parsed: once jsonargparse has refused them, they are
compared with the classes they name to find the option, what it may have been meant to be, and the remedy.
"""

import inspect
import os
import pkgutil
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from jsonargparse._parameter_resolvers import ParamData, get_signature_parameters
from pytorch_lightning.loggers import Logger

from hsakd_pl.cli.arguments import CLASS_PATH, option_tree, pairs
from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.modules import HSAKDModule

LONGEST_VALUE = 200  # characters of a value that a message quotes
BASES: dict[str, type] = {  # of the options whose value is a class
    "model": HSAKDModule,
    "data": pl.LightningDataModule,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "callbacks": pl.Callback,
    "logger": Logger,
}
MADE_BY_FUNCTIONS = ("optimizer", "lr_scheduler")
PROVIDED = {  # required options that the data module, the model or the run sets
    "model": ("num_classes",),
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer",),
    "logger": ("save_dir",),
}


class Place(NamedTuple):
    """A value among the arguments: its dotted option, and the command, for ``--help``."""

    option: str
    command: str

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.option}.{name}".strip("."), self.command)


def explain(error: ArgumentError, args: list[str], options: Iterable[str]) -> UsageError:
    """Return the error to show for arguments of ``fit``, ``validate``, ``test`` or ``predict``.

    Importing a class that the arguments name may raise whatever the user's module raises.

    Args:
        error: what jsonargparse says.
        args: the command and its arguments.
        options: the dotted options of the command.
    """
    try:
        for flag, value in pairs(args):
            if flag in ("--model.help", "--data.help"):
                name = flag.removeprefix("--").removesuffix(".help")
                _load_class(Place(name, args[0]), name, value)
        _check(args[0], option_tree(args), {option.partition(".")[0] for option in options})
    except UsageError as explanation:
        return explanation
    return UsageError(first_and_last_line(str(error)))


def first_and_last_line(message: str) -> str:
    """Return the culprit and the value that it has, which jsonargparse puts around its reasons."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ends = lines[:1] + lines[1:][-1:]
    return " ".join(shortened(line) for line in ends)


def unwrapped(error: BaseException) -> BaseException:
    """Return the error that code outside of jsonargparse raised, and that jsonargparse raised another one from."""
    return _raised_outside(error) or error


def _raised_outside(error: BaseException) -> BaseException | None:
    if error.__traceback__ is None:
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not str(frame.f_globals.get("__name__")).startswith("jsonargparse."):
        return error
    # of a value that may have several types, jsonargparse keeps the error of each, but chains only that of the first
    reasons = [*frame.f_locals.get("exceptions", []), error.__cause__]
    return next(filter(None, (_raised_outside(reason) for reason in reasons if reason is not None)), None)


def shortened(value: object) -> str:
    """Return the text of a value, cut where it is too long for a message."""
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..."


def _check(command: str, tree: dict[str, Any], options: set[str]) -> None:
    for name in tree:
        if name not in options:
            hint = did_you_mean(str(name), options)
            raise UsageError(f"there is no option {name}: {hint}'hsakd {command} --help' lists the options")
    top = Place("", command)
    if isinstance(tree.get("trainer"), dict):
        _check_options(top / "trainer", pl.Trainer, tree["trainer"])
    for name in BASES:
        if tree.get(name) is not None:
            _check_value(top / name, name, tree[name])
    missing = [name for name in ("data", "model") if name not in tree]
    if missing:
        named = " and ".join(f"--{name} CLASS" for name in missing)
        raise UsageError(f"{' and '.join(missing)} missing: name a configuration with --config FILE, or use {named}")


def _check_value(place: Place, name: str, value: Any) -> None:
    """Check what the value of an option names: a class, or classes in a list."""
    if isinstance(value, list):
        for item in value:
            _check_value(place, name, item)
    elif isinstance(value, dict) and CLASS_PATH in value:
        options = {key: option for key, option in value.items() if key != CLASS_PATH}
        _check_class(place, name, str(value[CLASS_PATH]), options)
    elif isinstance(value, str) and name in BASES and not os.path.exists(value):
        _check_class(place, name, value, {})


def _check_class(place: Place, name: str, path: str, options: dict[str, Any]) -> None:
    """Check an import path and the options of the class there; functions can make optimizers and schedules."""
    kind = _load_class(place, name, path)
    if isinstance(kind, type):
        _check_options(place, kind, options)
    elif name in BASES and name not in MADE_BY_FUNCTIONS:
        raise UsageError(f"{place.option}: {path} is not a class: name a subclass of {BASES[name].__name__}")


def _check_options(place: Place, kind: type, options: dict[str, Any]) -> None:
    parameters = {parameter.name: parameter for parameter in get_signature_parameters(kind, "__init__")}
    prefix = f"{place.option}."
    for name in options:
        if name not in parameters:
            raise UsageError(
                f"there is no option {(place / name).option}: {did_you_mean(str(name), parameters, prefix)}"
                f"{_remedy(place, kind, parameters)}"
            )
    for name, value in options.items():
        _check_value(place / name, name, value)
    provided = PROVIDED.get(place.option.rpartition(".")[2], ())
    for name, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if required and name not in provided and options.get(name) is None:
            raise UsageError(
                f"{(place / name).option} is missing: {kind.__name__} needs it; set --{(place / name).option}"
            )
    for name, value in options.items():
        _check_type(place / name, parameters[name], value)


def _check_type(place: Place, parameter: ParamData, value: Any) -> None:
    if value is None or parameter.annotation is inspect.Parameter.empty:
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=parameter.annotation)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        wanted = inspect.formatannotation(parameter.annotation).replace("typing.", "")
        raise UsageError(f"{place.option}: {shortened(value)} is not valid; expected {wanted}") from None


def _remedy(place: Place, kind: type, names: Iterable[str]) -> str:
    if place.option in ("model", "data"):
        return f"'hsakd {place.command} --{place.option}.help {kind.__name__}' lists the options of {kind.__name__}"
    if kind is pl.Trainer:
        return f"'hsakd {place.command} --help' lists the options"
    return f"{kind.__name__} has {', '.join(names)}"


def _load_class(place: Place, name: str, path: str) -> Any:
    module_name, _, class_name = path.rpartition(".")
    if not module_name:
        return _class_by_name(place, BASES.get(name, object), path)
    if not all(path.split(".")):
        raise UsageError(f"{place.option}: {path} is not an import path: write PACKAGE.MODULE.CLASS")
    module = _load_module(place, path, module_name)
    if not hasattr(module, class_name):
        public = [attribute for attribute in dir(module) if not attribute.startswith("_")]
        hint = did_you_mean(class_name, public, f"{module_name}.") or "check the import path"
        raise UsageError(f"{place.option}: {path} does not exist: {hint}".strip())
    return getattr(module, class_name)


def _class_by_name(place: Place, base: type, name: str) -> type:
    classes: dict[str, type] = {kind.__name__: kind for kind in _subclasses(base)}
    if name not in classes:
        hint = did_you_mean(name, classes) or "give the import path of a class"
        raise UsageError(f"{place.option}: {name} is not a known class: {hint}".strip())
    return classes[name]


def _load_module(place: Place, path: str, name: str) -> Any:
    """Import a module; raises UsageError where it or a module that it imports is missing, and what it raises itself."""
    package, _, child = name.rpartition(".")
    if package:
        parent = _load_module(place, path, package)
        searched = getattr(parent, "__path__", [])
        where = f"in {package}"
    else:
        searched = [str(Path.cwd())]
        where = "in the working folder, PYTHONPATH and the environment"
    if name == "pl_bolts":
        import_module("hsakd_pl.integrations.bolts")  # raises the error that says how to install it
    if (package and not searched) or not _is_module(name):
        names = (module.name for module in pkgutil.iter_modules(searched))
        hint = did_you_mean(child, names, f"{package}." if package else "") or "check the import path"
        raise UsageError(f"{place.option}: {path}: there is no module {name} {where}: {hint}".strip())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{place.option}: {path} cannot be imported: {error}; install what is missing") from error


def _is_module(name: str) -> bool:
    """Return True if a module can be imported, or has been, such as ``__main__``."""
    return name in sys.modules or find_spec(name) is not None


def _subclasses(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _subclasses(kind)
