"""Test that the docstrings of public names are complete, and that all examples in docstrings print what they show."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import docstring_parser
import pytest
import torch

import hsakd_pl
from hsakd_pl import methods, ops

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hsakd_pl").rglob("*.py"))
    if ">>>" in path.read_text("utf-8")
]
ON_PAGES = [path.read_text("utf-8") for path in [ROOT / "docs/api.md", *(ROOT / "docs/api").glob("*.md")]]
LISTED = re.compile(r"^::: hsakd_pl\.(\S+)\n(?: +options: \{members: \[(.+?)\])?", re.MULTILINE)
RAISING = re.compile(r"_?(require|check)(_\w+)?")  # functions that raise UsageError for a wrong argument
PAPER = re.compile(r"\((?:[^;()]+; )?([^();]+)\)")  # in the first line of a method's file: (SHORT; AUTHORS, VENUE YEAR)


def public_names() -> Iterator[str]:
    """Yield the names of ``__all__`` and of ``hsakd_pl.ops``, and those of the API pages with their members."""
    yield from hsakd_pl.__all__
    yield from (f"methods.{name}" for name in methods.__all__)
    for name, member in vars(ops).items():
        if getattr(member, "__module__", None) == ops.__name__ and not name.startswith("_"):
            yield f"ops.{name}"
    for listed, members in LISTED.findall("\n".join(ON_PAGES)):
        yield listed
        yield from (f"{listed}.{name}" for name in members.split(", ") if name)


PUBLIC: dict[str, Any] = {}
for path in public_names():
    public_member = attrgetter(path)(hsakd_pl)
    if not isinstance(public_member, ModuleType) and not any(public_member is other for other in PUBLIC.values()):
        PUBLIC[path] = public_member


def described(member: Any) -> dict[str, str]:
    """Return the descriptions of the parameters of a function, or of the options of a class and its bases."""
    owners = member.__mro__ if inspect.isclass(member) else [member]
    docstrings = [owner.__doc__ for owner in owners if (owner.__module__ or "").startswith("hsakd_pl")]
    parsed = [docstring_parser.google.parse(text) for text in reversed(docstrings) if text]
    return {entry.arg_name: entry.description or "" for text in parsed for entry in text.params}


def undescribed(member: Any) -> list[str]:
    """Return the parameters without a description, and the tensors without a shape."""
    parameters = [value for name, value in inspect.signature(member).parameters.items() if name != "self"]
    texts = described(member)
    missing = [parameter.name for parameter in parameters if parameter.name not in texts]
    tensors = [parameter.name for parameter in parameters if parameter.annotation is torch.Tensor]
    return missing + [f"shape of {name}" for name in tensors if not re.search(r"\(.*\)|scalar", texts.get(name, "()"))]


def raises(member: Any) -> bool:
    """Check whether the body of a function, or of the initialiser of a class, raises for a wrong argument."""
    own = [member]
    if inspect.isclass(member):
        own = [
            vars(member)[name] for name in ("__init__", "__post_init__") if inspect.isfunction(vars(member).get(name))
        ]
    nodes = [node for body in own for node in ast.walk(ast.parse(dedent(inspect.getsource(inspect.unwrap(body)))))]
    called = [getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Raise) for node in nodes) or any(map(RAISING.fullmatch, called))


def authors(member: Any) -> str:
    """Return authors and venue of the paper that the file of a method names; an empty string for other files."""
    file = inspect.getmodule(member)
    assert file is not None and file.__doc__ is not None
    paper = PAPER.search(file.__doc__.partition("\n")[0]) if file.__name__.startswith(methods.__name__ + ".") else None
    return paper[1] if paper else ""


def lacking(member: Any) -> list[str]:
    """Return what the docstring of a public name lacks."""
    if isinstance(member, ops.Transforms):
        member = type(member)
    text = inspect.getdoc(member) or ""
    parsed = docstring_parser.google.parse(text)
    missing = undescribed(member)
    if not inspect.isclass(member) and inspect.signature(member).return_annotation is not None and not parsed.returns:
        missing.append("Returns")
    if raises(member) and not parsed.raises:
        missing.append("Raises")
    if authors(member) and not re.search(r"^Source: .+", text, re.MULTILINE):
        missing.append("Source")
    examples = doctest.DocTestParser().get_examples(text)
    if all(example.options.get(doctest.SKIP) for example in examples):
        missing.append("Examples")
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_of_a_public_name_is_complete(name: str) -> None:
    assert lacking(PUBLIC[name]) == []


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_print_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    torch.manual_seed(0)
    public = {public_name: getattr(hsakd_pl, public_name) for public_name in hsakd_pl.__all__}
    result = doctest.testmod(import_module(name), extraglobs=public | {"torch": torch})
    assert result.failed == 0
