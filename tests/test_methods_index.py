"""Test that the index of the methods is complete and up to date."""

import sys
from pathlib import Path

import pytest

from hsakd_pl import methods

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_methods_index_equals_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import methods_index

    assert methods_index.INDEX.read_text() == methods_index.index()
    del sys.modules["methods_index"]


def test_methods_index_names_every_public_method() -> None:
    index = Path(methods.__file__).with_name("index.md").read_text()
    public = [name for name in methods.__all__ if name.endswith("Module") and name != "DistilledModule"]
    assert [name for name in public if f"| `{name}` |" not in index] == []
