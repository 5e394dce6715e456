"""griffe extension for the API page: show the options that a class takes from its bases as its own, and formulas."""

import importlib
import inspect
import runpy
from pathlib import Path
from textwrap import indent
from typing import Any

import griffe

as_markdown = runpy.run_path(str(Path(__file__).with_name("formulas.py")))["as_markdown"]


class FullOptions(griffe.Extension):
    """Complete the signatures and docstrings of classes that pass ``**options`` on to their bases."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Complete all classes of a package once it is loaded."""
        completions = [completion(cls, pkg) for cls in classes(pkg)]
        for cls, parameters, descriptions in completions:
            if "__init__" in cls.members:
                cls.members["__init__"].parameters = griffe.Parameters(*parameters)
            if descriptions:
                entries = [f"{name}: {text}" for name, text in descriptions.items()]
                section = indent("\n".join(entry.replace("\n", "\n    ") for entry in entries), "    ")
                cls.docstring.value += f"\n\nArgs: Options of the base classes:\n{section}"


class Formulas(griffe.Extension):
    """Write the formulas of docstrings as Markdown does."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Convert the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def classes(module: griffe.Module) -> list[griffe.Class]:
    """Return the documented classes of a module and its submodules whose options are declared in bases."""
    members = [member for member in module.members.values() if not member.is_alias]
    inner = [cls for member in members if member.is_module for cls in classes(member)]
    return inner + [member for member in members if member.is_class and member.docstring and takes_options(member)]


def takes_options(cls: griffe.Class) -> bool:
    """Check whether ``inspect.signature`` shows options of the bases for a class."""
    return any("__signature__" in vars(base) for base in python_class(cls).__mro__)


def python_class(cls: griffe.Class) -> type:
    """Import the class that griffe has read."""
    found: type = getattr(importlib.import_module(cls.module.path), cls.name)
    return found


def completion(
    cls: griffe.Class, package: griffe.Module
) -> tuple[griffe.Class, list[griffe.Parameter], dict[str, str]]:
    """Return a class, its parameters, and descriptions of the parameters that its docstring does not describe."""
    python = python_class(cls)
    names = list(inspect.signature(python).parameters)
    declared: dict[str, griffe.Parameter] = {}
    described: dict[str, str] = {}
    for base in python.__mro__:
        if base.__module__.partition(".")[0] != package.name:
            continue
        source = package[f"{base.__module__}.{base.__qualname__}".partition(".")[2]]
        if "__init__" in source.members:
            for parameter in source.members["__init__"].parameters:
                declared.setdefault(parameter.name, parameter)
        for name, text in argument_descriptions(source).items():
            described.setdefault(name, text)
    parameters = [declared["self"]] + [declared[name] for name in names if name in declared]
    own = argument_descriptions(cls)
    missing = {name: described[name] for name in names if name in described and name not in own}
    return cls, parameters, missing


def argument_descriptions(cls: griffe.Class) -> dict[str, str]:
    """Return the descriptions in the section ``Args:`` of a docstring."""
    if cls.docstring is None:
        return {}
    sections = cls.docstring.parse("google", warnings=False)
    parameters = [section for section in sections if section.kind is griffe.DocstringSectionKind.parameters]
    return {entry.name: entry.description for section in parameters for entry in section.value}
