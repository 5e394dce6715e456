"""Definitions found in source that is not imported: PyTorch and Lightning would take seconds."""

import ast
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NamedTuple


class Found(NamedTuple):
    """A definition, or the value of an assignment, and the module it is in."""

    module: str
    node: Any


@cache
def find(path: str) -> Found | None:
    """Follow an import path, however often a package passes the name on, to a source; None where there is none."""
    module, _, name = path.rpartition(".")
    tree = source_of(module) if module else None
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return Found(module, node.value)
    origin = bound(module, name) if tree else path
    return find(origin) if origin != path else None


def public(module: str) -> list[str]:
    """The names in ``__all__`` of a module."""
    found = find(f"{module}.__all__")
    return [] if found is None else ast.literal_eval(found.node)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing what it lies in."""
    package, _, name = module.rpartition(".")
    if not package:
        return find_spec(name)
    inside = _spec(package)
    return PathFinder.find_spec(module, inside.submodule_search_locations) if inside else None


@cache
def source_of(module: str) -> ast.Module | None:
    """Parse a module; None where it has no source, or is not there."""
    spec = _spec(module)
    origin = str(spec.origin) if spec else ""
    return ast.parse(Path(origin).read_text("utf-8")) if origin.endswith(".py") else None


def bound(module: str, name: str) -> str:
    """The import path of what a module knows under a name."""
    spec, tree = _spec(module), source_of(module)
    package = module if spec and spec.submodule_search_locations else module.rpartition(".")[0]
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name and isinstance(node, ast.Import):
                    return alias.name
                if (alias.asname or alias.name) == name and isinstance(node, ast.ImportFrom):
                    return f"{resolve_name('.' * node.level + (node.module or ''), package)}.{alias.name}"
    return f"{module}.{name}"


def value(module: str, node: ast.expr) -> Any:
    """Evaluate an expression of literals and of names of such, as a module has them; ValueError for any other."""
    if isinstance(node, ast.FormattedValue):
        return value(module, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value(module, part)) for part in node.values)
    if isinstance(node, ast.Name) and (found := find(f"{module}.{node.id}")) and isinstance(found.node, ast.expr):
        return value(*found)
    return ast.literal_eval(node)
