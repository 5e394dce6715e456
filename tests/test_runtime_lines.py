"""Test that the lines of docs/runtimes.md run, each with the runtime that it is about, where that is installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from hsakd_pl import DigitsDataModule, create_network, export_student, load_student

pytestmark = small.needs_onnx
PAGE = (Path(__file__).resolve().parents[1] / "docs/runtimes.md").read_text()
LINES = dict(re.findall(r"^### (\w+)\n.*?not run: tests/test_runtime_lines.*?```python\n(.*?)```", PAGE, re.M | re.S))
LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "OpenVINO": "openvino",
    "PyTorch": "torch",
    "ExecuTorch": "executorch",
    "ncnn": "pnnx",
    "tract": "tract",
}
LOOSE = {"onnxruntime": 0.5, "ncnn": 1e-3}  # int8; an approximate kernel
EXPORTED = ("safetensors", "pt2", "onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a student with all files."""
    folder = tmp_path_factory.mktemp("lines")
    torch.manual_seed(0)
    network = small.with_statistics(create_network("resnet8", 10, branches=False))
    torch.save(network.state_dict(), folder / "weights.pth")
    data = DigitsDataModule(num_workers=0)
    export_student(
        folder / "weights.pth",
        folder / "out",
        EXPORTED,
        network="resnet8",
        description=data.description,
        int8="static",
        data=data,
        measure=False,
    )
    return folder / "out"


def test_every_runtime_has_lines() -> None:
    assert LINES.keys() == LIBRARIES.keys()


@pytest.mark.parametrize("runtime", LIBRARIES)
def test_documented_lines_return_the_logits(runtime: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[runtime], reason=f"{LIBRARIES[runtime]} is not installed")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    images = DigitsDataModule().read(train=False).images[:1]
    np.save(tmp_path / "pixels.npy", (images / 255).numpy())
    code = f"import numpy\npixels = numpy.load('pixels.npy')\n{LINES[runtime]}\nnumpy.save('logits.npy', logits)\n"
    if runtime != "PyTorch" and runtime != "ExecuTorch":
        code += "import sys\nassert 'torch' not in sys.modules and 'hsakd_pl' not in sys.modules\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pnnx = find_spec("pnnx")
    if pnnx is not None and pnnx.origin is not None:  # its program, where its package is in a folder of its own
        environment["PATH"] += os.pathsep + os.path.dirname(pnnx.origin)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment, capture_output=True)
    expected = load_student(folder)(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=LOOSE.get(runtime, 1e-4))
