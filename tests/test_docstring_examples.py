"""Test that the docstrings of public names are complete, and that all examples in docstrings print what they show."""

import ast
import doctest
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import docstring_parser
import programs
import pytest
import torch
from PIL import Image

import hsakd_pl
from hsakd_pl import methods, ops
from hsakd_pl.quickstart import quickstart

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hsakd_pl").rglob("*.py"))
    if ">>>" in path.read_text("utf-8")
]
# Archive of real images, or its stand-in, and folder in it, which the examples of a file have as the folder data
ARCHIVES = {
    "hsakd_pl.data.cifar100": ("cifar100-mini.tar.gz", "cifar100-mini"),
    "hsakd_pl.data.stl10": ("stl10-mini.tar.gz", "stl10-mini"),
    "hsakd_pl.data.tinyimagenet": ("tiny-imagenet-mini.tar.gz", "."),
    "hsakd_pl.data.imagenet": ("imagenet-mini.tar.gz", "imagenet-mini"),
}
RUN_ELSEWHERE = [quickstart]  # its example takes a minute; tests/test_quickstart.py runs a shorter one
ON_PAGES = [path.read_text("utf-8") for path in (ROOT / "docs/api").glob("*.md")]
LISTED = re.compile(r"^::: hsakd_pl\.(\S+)\n(?: +options: \{members: \[(.+?)\])?", re.MULTILINE)
RAISING = re.compile(r"_?(require|check)(_\w+)?")  # functions that raise UsageError for a wrong argument
PAPER = re.compile(r"\((?:[^;()]+; )?([^();]+)\)")  # in the first line of a method's file: (SHORT; AUTHORS, VENUE YEAR)


def public_names() -> Iterator[str]:
    """Yield the names of ``__all__`` and of ``hsakd_pl.ops``, and those of the API pages with their members."""
    yield from hsakd_pl.__all__
    yield from (f"methods.{name}" for name in methods.__all__)
    for name, member in vars(ops).items():
        is_own = getattr(member, "__module__", None) == ops.__name__
        if is_own and (inspect.isfunction(member) or inspect.isclass(member)) and not name.startswith("_"):
            yield f"ops.{name}"
    for listed, members in LISTED.findall("\n".join(ON_PAGES)):
        yield listed
        owner = attrgetter(listed)(hsakd_pl)  # a function where a module has its name too
        yield from (f"{listed}.{name}" for name in members.split(", ") if hasattr(owner, name))


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
    if inspect.isclass(member):
        member = vars(member).get("__post_init__" if is_dataclass(member) else "__init__")
    if not inspect.isfunction(member):
        return False
    nodes = [*ast.walk(ast.parse(dedent(inspect.getsource(inspect.unwrap(member)))))]
    calls = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    raised = [node for node in nodes if isinstance(node, ast.Raise) and "NotImplementedError" not in ast.unparse(node)]
    return bool(raised) or any(map(RAISING.fullmatch, calls))


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
    if all(example.options.get(doctest.SKIP) for example in examples) and member not in RUN_ELSEWHERE:
        missing.append("Examples")
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_of_a_public_name_is_complete(name: str) -> None:
    assert lacking(PUBLIC[name]) == []


@pytest.fixture
def example_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the files that examples name: class folders of photos, and one photo."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(f"{split}/{cat}" for split in ("train", "train", "test") for cat in ("cat", "dog")):
        for copy in range(2):
            path = tmp_path / "photos" / name / f"{number}_{copy}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 40), (40 * number, 100 * copy, 90)).save(path)
    shutil.copy(path, "photo.jpg")
    return tmp_path


def save_to_disk(folder: Path) -> None:
    """Write the photos as a data set of the library ``datasets``."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'hsakd_pl[datasets]'")
    splits = {}
    for split in ("train", "test"):
        paths = sorted(folder.glob(f"photos/{split}/*/*.jpg"))
        columns = {"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]}
        splits[split] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(folder / "photos-saved")


def run_examples(name: str) -> int:
    """Run the examples of a file, and return how many print something else than they show."""
    torch.manual_seed(0)
    public = {public_name: getattr(hsakd_pl, public_name) for public_name in hsakd_pl.__all__}
    return doctest.testmod(import_module(name), extraglobs=public | {"torch": torch}).failed


def run_examples_of_prepare_cpu() -> None:
    sys.exit(run_examples("hsakd_pl.cpu.start"))


@pytest.mark.parametrize("name", [name for name in WITH_EXAMPLES if name != "hsakd_pl.cpu.start"])
def test_docstring_examples_print_what_they_show(name: str, example_files: Path, unpack: Callable[[str], Path]) -> None:
    if name in ARCHIVES:
        archive, folder = ARCHIVES[name]
        Path("data").symlink_to(unpack(archive) / folder)
    if name == "hsakd_pl.data.torchvision_sets":
        shutil.copytree("photos/train", "data/eurosat/2750")
    if name == "hsakd_pl.data.hub":
        save_to_disk(example_files)
    assert run_examples(name) == 0


def test_example_of_prepare_cpu_runs_in_a_process_of_its_own() -> None:
    assert programs.run(run_examples_of_prepare_cpu).returncode == 0
