"""Write each notebook from the script of the same name and execute it: ``python notebooks/build.py [NAME...]``.

The scripts are what people edit and review; a test compares the notebooks with them, and with a fresh execution.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if path != FOLDER / "build.py"]


def unexecuted(script: Path) -> NotebookNode:
    """Make the notebook of a script in the percent format, without outputs."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.nbformat = 4
    notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # those of the library are random
    nbformat.validate(notebook)
    return notebook


def executed(notebook: NotebookNode) -> NotebookNode:
    """Execute a notebook in place, on one thread and in an empty folder; raises where a cell does."""
    kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # pictures go into the notebook
    paths = os.pathsep.join(filter(None, [str(FOLDER.parent), kept.get("PYTHONPATH")]))
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute(env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    notebook.metadata.pop("language_info")  # the version of this Python
    return notebook


if __name__ == "__main__":
    for script in [script for script in SCRIPTS if script.stem in sys.argv[1:] or not sys.argv[1:]]:
        text = nbformat.writes(executed(unexecuted(script))) + "\n"
        script.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(f"{script.stem}.ipynb: {len(text) / 1000:.0f} kB")
