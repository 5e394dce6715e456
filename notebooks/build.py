"""Write each notebook from the script of the same name: ``python notebooks/build.py``.

The scripts are what people edit and review; the notebooks hold no outputs, and a test compares the two.
"""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if path != FOLDER / "build.py"]


def build(script: Path) -> str:
    """The notebook of a script in the percent format, as the text of its file."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # those of the library are random
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for script in SCRIPTS:
        script.with_suffix(".ipynb").write_text(build(script), encoding="utf-8")
