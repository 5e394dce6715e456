"""Run the lines of docs/runtimes.md, each in an environment that has only its runtime, NumPy and Pillow.

python scripts/runtimes.py EXPORT PICTURE [--runtimes NAME ...] [--folder FOLDER]

EXPORT is a folder that ``hsakd export --int8`` wrote; the code in its model card reads the picture. Each environment is
made with pip, needs up to 6 GB, and is removed after use. Prints, for each runtime, the versions and the largest
difference of a logit from PyTorch's.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runtimes.md"


class Trial(NamedTuple):
    """Packages of a bare environment, and the title of the section whose lines run in it."""

    section: str
    packages: tuple[str, ...]


TRIALS = {
    "onnxruntime": Trial("onnxruntime", ("onnxruntime",)),
    "openvino": Trial("OpenVINO", ("openvino",)),
    "torch": Trial("PyTorch", ("torch",)),
    "torch 2.9": Trial("PyTorch", ("torch==2.9.*",)),
    "executorch": Trial("ExecuTorch", ("executorch", "torch")),
    "ncnn": Trial("ncnn", ("ncnn", "pnnx")),
    "tract": Trial("tract", ("tract",)),
    "litert": Trial("LiteRT", ("litert-torch",)),
    "coremltools": Trial("Core ML", ("coremltools", "torch")),
}
LAST_LINES = """
import importlib.metadata, json
versions = {package: importlib.metadata.version(package) for package in PACKAGES}
values = numpy.asarray(logits).tolist() if "logits" in globals() else None
print("RESULT", json.dumps({"versions": versions, "logits": values}))
"""


def sections() -> dict[str, str]:
    """Return the code of each section of the page."""
    return dict(re.findall(r"^### ([\w ]+)\n.*?```python\n(.*?)```", PAGE.read_text(), re.M | re.S))


def reading(export: Path, picture: Path) -> str:
    """Return the lines of the model card that read a picture to ``pixels``, for another picture."""
    (code,) = re.findall(
        r"```python\nimport json\nimport onnxruntime\n(.*?)```", (export / "README.md").read_text(), re.S
    )
    functions, statement, _ = re.split(r"^(pixels = .*)$", code, maxsplit=1, flags=re.M)
    return functions + statement.replace('"picture.jpg"', repr(str(picture)))


def reference(export: Path, picture: Path) -> list[list[float]]:
    """Return the logits (1, N) that the exported student has in PyTorch."""
    from hsakd_pl import load_student, open_image

    student = load_student(str(export))
    return student(student.transform(open_image(str(picture)))[None]).tolist()


def attempt(trial: Trial, export: Path, picture: Path, folder: Path) -> tuple[str, list[list[float]] | None]:
    """Run the lines of a runtime in an environment of its own; return the versions in words, and the logits."""
    environment, files = folder / "environment", folder / "export"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-compile"]
    subprocess.run([*install, "numpy", "pillow", *trial.packages], check=True)
    shutil.copytree(export, files)
    packages = [re.split(r"[=<>]", package)[0] for package in trial.packages]
    code = f"import numpy\n{reading(export, picture)}\n{sections()[trial.section]}\nPACKAGES = {packages}\n{LAST_LINES}"
    path = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    done = subprocess.run([str(python), "-c", code], cwd=files, env=path, capture_output=True, text=True)
    (line,) = re.findall(r"^RESULT (.*)$", done.stdout, re.M) or [None]
    if line is None:
        raise SystemExit(done.stdout + done.stderr)
    result = json.loads(line)
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items()), result["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--runtimes", nargs="+", default=[*TRIALS], choices=TRIALS)
    parser.add_argument("--folder", help="folder for temporary environments")
    options = parser.parse_args()
    picture = options.picture.resolve()
    (expected,) = reference(options.export, picture)
    largest = max(abs(value) for value in expected)
    print("| runtime | versions | difference / largest logit | seconds, installation included |\n|---|---|---|---|")
    for name in options.runtimes:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            versions, logits = attempt(TRIALS[name], options.export, picture, Path(folder))
        outcome = "converted"
        if logits is not None:
            difference = max(abs(one - other) for one, other in zip(logits[0], expected, strict=True))
            outcome = f"{difference / largest:.1e}"
        print(f"| {name} | {versions} | {outcome} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
