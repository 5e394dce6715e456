"""The notebooks are what their scripts make, hold no outputs, and run."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

nbformat, nbclient, *_ = [pytest.importorskip(name) for name in ("nbformat", "nbclient", "ipykernel", "jupytext")]

FOLDER = Path(__file__).parents[1] / "notebooks"
BUILD = runpy.run_path(str(FOLDER / "build.py"))
NAMES = ["own_loss", "quickstart"]


def test_every_script_has_its_notebook() -> None:
    assert [script.stem for script in BUILD["SCRIPTS"]] == NAMES
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_what_the_scripts_make(name: str) -> None:
    committed = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert committed == BUILD["build"](FOLDER / f"{name}.py"), "run: python notebooks/build.py"


def values(name: str, expression: str, folder: Path) -> Any:
    """Run a notebook in ``folder``; returns what an expression is in the end."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({expression}))"))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in picture.data for picture in pictures)
    return json.loads(notebook.cells[-1].outputs[0].text)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel, a process of its own, finds the package where this one does, and shows pictures in the notebook."""
    paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("MPLBACKEND", raising=False)


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    accuracy, parameters = values("quickstart", "[accuracy, parameters]", tmp_path)
    assert accuracy["teacher"] > 80
    assert accuracy["distilled"] > accuracy["alone"] > 20  # a tenth of the images is chance
    assert parameters["alone"] == parameters["distilled"]


@pytest.mark.slow
def test_own_loss(tmp_path: Path) -> None:
    accuracy, distance = values("own_loss", "[accuracy, distance]", tmp_path)
    assert min(accuracy.values()) > 50
    assert distance["HSAKD and attention"] < distance["HSAKD"] / 2
