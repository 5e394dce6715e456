"""The examples in docstrings run and print what they show; they may use torch and the public names."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import torch

import hsakd_pl

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hsakd_pl").rglob("*.py"))
    if ">>>" in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_print_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    public = {public_name: getattr(hsakd_pl, public_name) for public_name in hsakd_pl.__all__}
    result = doctest.testmod(import_module(name), extraglobs=public | {"torch": torch})
    assert result.failed == 0
