"""Test that the examples in the docstrings of the methods run."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

import hsakd_pl.methods

FILES = [file.name for file in pkgutil.iter_modules(hsakd_pl.methods.__path__)]


@pytest.mark.parametrize("file", FILES)
def test_docstring_examples_of_methods_run(file: str) -> None:
    torch.manual_seed(0)
    module = import_module(f"hsakd_pl.methods.{file}")
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
