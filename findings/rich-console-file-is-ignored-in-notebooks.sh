#!/usr/bin/env bash
# In a notebook, rich's Console(file=...) does not write into the file. It finds that it runs in a Jupyter kernel, and
# shows the text below the cell, so that the file stays empty. A function that renders a table into a string returns an
# empty one there, and the table appears above everything else that the cell prints. force_jupyter=False writes.
# Most people expect a console with a file to write into that file, wherever it runs.
# rich 15.0.0, ipykernel 7.4.0, nbclient 0.11.0, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python rich==15.0.0 ipykernel==7.4.0 nbclient==0.11.0
env/bin/python - <<'PROGRAM'
from importlib.metadata import version

import nbclient
import nbformat

print("rich", version("rich"), " ipykernel", version("ipykernel"), " nbclient", version("nbclient"))
CELL = """
from io import StringIO
from rich.console import Console
file = StringIO()
Console(file=file, width=40{options}).print("a line")
print("the file has:", repr(file.getvalue()))
"""


def outputs(options):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(options=options))])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    shown = notebook.cells[0].outputs
    printed = "".join(output.text for output in shown if output.output_type == "stream").strip()
    displayed = "".join(output.data["text/plain"] for output in shown if output.output_type == "display_data").strip()
    return printed, displayed


by_default, written = outputs(""), outputs(", force_jupyter=False")
print("Console(file=file):                      ", *by_default, sep="  |  ")
print("Console(file=file, force_jupyter=False): ", *written, sep="  |  ")
assert by_default == ("the file has: ''", "a line")
assert written == ("the file has: 'a line\\n'", "")
print("as described")
PROGRAM
