"""What a parser says at length about a mistake, in a line: the culprit, what may have been meant, and the remedy."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from hsakd_pl.errors import did_you_mean

MOST_SHOWN = 800  # characters of what a message quotes
BASES = {  # of what an option names by class path
    "model": "hsakd_pl.modules.HSAKDModule",
    "data": "pytorch_lightning.LightningDataModule",
    "optimizer": "torch.optim.Optimizer",
    "lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
}


def one_error(message: str, keys: Iterable[str] = ()) -> NoReturn:
    """Report what arguments get wrong, ``keys`` being those that there are, without pages of usage."""
    if "No module named 'pl_bolts'" in message:
        import_module("hsakd_pl.integrations.bolts")  # raises the error that says how to install it
    shown = explained(message, [*keys])
    print(f"error: {shown if len(shown) <= MOST_SHOWN else f'{shown[:MOST_SHOWN]} ...'}", file=sys.stderr)
    raise SystemExit(2)


def explained(message: str, keys: list[str]) -> str:
    """Give the one line for the mistakes that are known, and the message itself for others."""
    for pattern, explain in MISTAKES.items():
        if found := [*re.finditer(pattern, message)]:  # the last one is what all others quote
            return explain(found[-1], message, keys)
    return message


def _unknown_option(found: re.Match[str], message: str, keys: list[str]) -> str:
    path, option = found["path"], found["option"]
    known = [*inspect.signature(_load(path)).parameters]
    group = next((group for group in ("model", "data") if issubclass(_load(path), _load(BASES[group]))), None)
    remedy = f"'fit --{group}.help {path}' lists those it has" if group else f"it has {', '.join(known)}"
    return f"{path} has no option {option!r}: {did_you_mean(option, known)}{remedy}"


def _unknown_attribute(found: re.Match[str], message: str, keys: list[str]) -> str:
    module, name = found.groups()
    public = [each for each in dir(import_module(module)) if not each.startswith("_")]
    hint = did_you_mean(name, public, f"{module}.") or f"name what is in {module}, or where yours is"
    return f"{module}.{name} does not exist: {hint}".strip()


def _unknown_module(found: re.Match[str], message: str, keys: list[str]) -> str:
    package, dot, name = found["module"].rpartition(".")
    searched = import_module(package).__path__ if package else [str(Path.cwd())]
    hint = did_you_mean(name, (each.name for each in pkgutil.iter_modules(searched)), package + dot)
    where = f"in {package}" if package else "in the working folder, PYTHONPATH and the environment"
    return f"{found['path'] or found['module']}: there is no module {found['module']} {where}: {hint}".strip(": ")


def _unknown_name(found: re.Match[str], message: str, keys: list[str]) -> str:
    options = re.findall(r'(?:Parser key "|^--)([\w.]+?)(?:\.help)?[":]', message)
    key = options[-1].rpartition(".")[2]
    known = {each.__name__ for each in _subclasses(_load(BASES[key]))} if key in BASES else set()
    hint = did_you_mean(found["name"], sorted(known)) or "give the whole import path of a class"
    return f"{key}: {found['name']} is no class that is known: {hint}".strip()


def _unknown_key(found: re.Match[str], message: str, keys: list[str]) -> str:
    given = found["key"].replace(".init_args.", ".")
    head = given.partition(".")[0]
    inside = [key for key in keys if key.startswith(f"{head}.")]
    hint = did_you_mean(given, inside) if inside else did_you_mean(head, {key.partition(".")[0] for key in keys})
    return f"there is no option {given}: {hint}'hsakd fit --help' lists them"


def _wrong_type(found: re.Match[str], message: str, keys: list[str]) -> str:
    path = re.findall(r'Parser key "([\w.]+)"', message[: found.end()])
    return f"{'.'.join(path)} is {found['value']}: it must be {found['type']}"


def _missing(found: re.Match[str], message: str, keys: list[str]) -> str:
    names = [name.rpartition(".")[2] for name in found["names"].split(", ")]
    return f"{' and '.join(names)} missing: name a configuration by --config FILE, or {_options(names)}"


def _options(names: list[str]) -> str:
    return " and ".join(f"--{name} CLASS" for name in names)


MISTAKES: dict[str, Callable[[re.Match[str], str, list[str]], str]] = {
    r"class_path '(?P<path>\S+)':\s+Option '(?P<option>\S+)' is not accepted": _unknown_option,
    r"Option '(?P<option>\S+)' is not accepted\. Got value: \w+\(class_path='(?P<path>[^']+)'": _unknown_option,
    r"module '([\w.]+)' has no attribute '(\w+)'": _unknown_attribute,
    r"(?:class_path '(?P<path>\S+)'|callable class):\s+No module named '(?P<module>[\w.]+)'": _unknown_module,
    r"Expected a dot import path string: (?P<name>\w+)": _unknown_name,
    r"(?:does not accept option '|unrecognized arguments: --)(?P<key>[\w.]+)": _unknown_key,
    r"Expected a <class '(?P<type>(?!NoneType)\w+)'>\. Got value: (?P<value>.*)": _wrong_type,
    r"arguments are required: (?P<names>(?:fit|validate|test|predict)\..*)": _missing,
}


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _subclasses(base: Any) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)
