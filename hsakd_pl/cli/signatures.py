"""What classes take, read off their source: a command line's options, their defaults and sentences."""

import ast
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from docstring_parser import ParseError
from docstring_parser.google import GoogleParser, Section, SectionType

from hsakd_pl.cli.source import Found, bound, find, source_of, value

ARGUMENTS = GoogleParser([Section("Args", "param", SectionType.MULTIPLE)])


class Option(NamedTuple):
    """An argument of a class: its default as a command line takes it, None where there is none, and what it is."""

    default: str | None
    sentence: str


def options(path: str) -> dict[str, Option]:
    """All that a class takes: what its own ``__init__`` names, and of its base's what goes through ``**``."""
    hidden, said = _hidden(path), dict[str, str]()
    arguments = {name: default for name, default in _arguments(path).items() if name not in hidden}
    for each in _lineage(path):
        if arguments.keys() <= said.keys():
            break
        said = sentences_of(each) | said
    named = re.findall(r"``(\w+)``", next(_docstrings(path), "").partition("\n\n")[0])  # the first paragraph
    said = dict.fromkeys(named, "see above") | said
    return {name: Option(default, said.get(name, "")) for name, default in arguments.items()}


def sentences_of(path: str) -> dict[str, str]:
    """What the docstring of a class itself says of arguments."""
    try:
        params = [param for text in _docstrings(path) for param in ARGUMENTS.parse(text).params]
    except ParseError:
        return {}
    return {param.arg_name: plain(param.description or "") for param in params}


def summary(path: str) -> str:
    """The first paragraph of a class's docstring."""
    return plain(next(_docstrings(path), "").partition("\n\n")[0])


def networks() -> list[str]:
    """The names under which the package's own networks are registered, sorted."""
    names: list[str] = []
    for path in Path(__file__).parents[1].glob("networks/*.py"):
        module = f"hsakd_pl.networks.{path.stem}"
        for statement in getattr(source_of(module), "body", ()):
            over, values = "", None
            if isinstance(statement, ast.For):
                over, values = f" for {ast.unparse(statement.target)} in values", value(module, statement.iter)
            for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
                if ast.unparse(call.func) == "register_network":
                    names += eval(f"[{ast.unparse(call.args[0])}{over}]", {"values": values})
    return sorted(names)


def plain(text: str) -> str:
    """Text without marks, in one line."""
    return " ".join(re.sub(r":\w+:`[~.]?([^`]*)`|`+([^`]*)`+", r"\1\2", text).split())


def _lineage(path: str) -> Iterator[str]:
    """A class and its bases, as far as their source is to be found."""
    found = find(path)
    if found is not None and isinstance(found.node, ast.ClassDef):
        yield path
        for base in found.node.bases:
            head, dot, rest = ast.unparse(base).partition(".")
            yield from _lineage(bound(found.module, head) + dot + rest)


def _initializer(path: str) -> ast.FunctionDef | None:
    found = find(path)
    body = found.node.body if found and isinstance(found.node, ast.ClassDef) else []
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)


def _docstrings(path: str) -> Iterator[str]:
    found = find(path)
    nodes = [found.node if found else None, _initializer(path)]
    yield from (text for node in nodes if node is not None and (text := ast.get_docstring(node)))


def _arguments(path: str) -> dict[str, str | None]:
    lineage = _lineage(path)
    for each in lineage:
        if found := _initializer(each):
            named = found.args.args[1:]
            missing: list[ast.expr | None] = [None] * (len(named) - len(found.args.defaults))
            defaults = [*missing, *found.args.defaults, *found.args.kw_defaults]
            pairs = zip([*named, *found.args.kwonlyargs], defaults, strict=True)
            own = {argument.arg: _shown(default) for argument, default in pairs}
            base = next(lineage, None) if found.args.kwarg else None
            inherited = _arguments(base) if base else {}
            gone = {*own, *_decided(found, [*inherited])} if base else set()
            return own | {name: default for name, default in inherited.items() if name not in gone}
    return {}


def _decided(initializer: ast.FunctionDef, names: list[str]) -> set[str]:
    """The arguments of its base that a class itself hands to it, and its users cannot."""
    for call in (node for node in ast.walk(initializer) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "super().__init__":
            return {*names[: len(call.args)], *(each.arg for each in call.keywords if each.arg)}
    return set()


def _hidden(path: str) -> set[str]:
    """What ``show_options`` hides of a class, or of all that derive from its base."""
    hidden, ours = set[str](), (f"{__package__.partition('.')[0]}.", f"{path.partition('.')[0]}.")
    for each in takewhile(lambda each: f"{getattr(find(each), 'module', '')}.".startswith(ours), _lineage(path)):
        module, node = find(each) or Found("", None)
        named = {node.name} if each == path else {"cls"}
        for call in (part for part in ast.walk(source_of(module) or node) if isinstance(part, ast.Call)):
            if ast.unparse(call.func) == "show_options" and ast.unparse(call.args[0]) in named:
                for name in call.args[1:]:
                    hidden |= {*value(module, name.value)} if isinstance(name, ast.Starred) else {value(module, name)}
    return hidden


def _shown(default: ast.expr | None) -> str | None:
    if default is None:
        return None
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)
    if isinstance(value, bool | None):
        return "" if value is None else str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
