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
# Address of the hosted repository, such as "https://github.com/OWNER/NAME": with it, notebooks begin with a badge that
# opens them in Colab. The project has no address yet, so that they have no badge.
REPOSITORY = ""
COLAB = "https://colab.research.google.com"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if path != FOLDER / "build.py"]


def badge(repository: str, name: str) -> str:
    """Return Markdown that opens a notebook of a repository on GitHub in Colab, and installs the package there."""
    page = repository.replace("https://github.com", f"{COLAB}/github")
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page}/blob/main/notebooks/{name}.ipynb) "
        f"There, first run `%pip install 'hsakd_pl[notebooks,export] @ git+{repository}'`.\n\n"
    )


def unexecuted(script: Path, repository: str = REPOSITORY) -> NotebookNode:
    """Make the notebook of a script in the percent format, without outputs."""
    notebook = jupytext.read(script)
    if repository:
        notebook.cells[0].source = badge(repository, script.stem) + notebook.cells[0].source
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
        client = NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute(env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    notebook.metadata.pop("language_info")  # the version of this Python
    return notebook


if __name__ == "__main__":
    for script in [script for script in SCRIPTS if script.stem in sys.argv[1:] or not sys.argv[1:]]:
        text = nbformat.writes(executed(unexecuted(script))) + "\n"
        script.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(f"{script.stem}.ipynb: {len(text) / 1000:.0f} kB")
