"""Test that imports never go up a floor and never form a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hsakd_pl"

# From the ground floor up: a floor may import those that are listed before it.
FLOORS = (
    "version",
    "errors",
    "signatures",
    "cpu",
    "ops",
    "files",
    "recipes",
    "networks",
    "data",
    "fast",
    "modules",
    "methods",
    "records",
    "report",
    "export",
    "runs",
    "integrations",
    "cli",
    "commands",
    "quickstart",
)
# Modules above all floors: the public names, the program, and the former place of the program's entry point.
TOP = ("hsakd_pl", "hsakd_pl.__main__", "hsakd_pl.runs.cli")


def module_name(path: Path) -> str:
    """Return the import path of a source file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


IMPORTS = {name: set(imported_modules(path)) for name, path in MODULES.items()}


def floor(module: str) -> int:
    """Return the number of a module's floor, above all others for the modules of ``TOP``."""
    return len(FLOORS) if module in TOP else FLOORS.index(module.split(".")[1])


def test_every_package_has_a_floor() -> None:
    assert {module.split(".")[1] for module in MODULES if module not in TOP} == set(FLOORS)


def test_imports_never_go_up() -> None:
    upward = [
        f"{module} imports {imported}"
        for module, imports in IMPORTS.items()
        for imported in sorted(imports)
        if floor(imported) > floor(module)
    ]
    assert upward == []


def test_imports_never_form_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_relative_imports_are_absent() -> None:
    """Check for relative imports, which the other tests do not see."""
    relative = [
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []
