"""The processor and the software that a measurement depends on."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hsakd_pl


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and its kind, such as ``AMD EPYC, AVX2``."""
    from hsakd_pl.cpu.kinds import cpu_of  # which earlier commits, that are measured with this file too, do not have

    cpu = cpu_of(cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{cpu.model}, {cpu.kind.name}"


def device_name(device: str) -> str:
    """Return the name of the processor, or of the GPU if ``device`` is cuda."""
    if device == "cpu":
        return processor()
    program = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def software() -> dict[str, Any]:
    """Return versions and the spin count of waiting threads, where the user has set one."""
    return {
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
        "python": platform.python_version(),
        "versions": {
            "hsakd_pl": hsakd_pl.__version__,
            "pytorch_lightning": version("pytorch_lightning"),
            "torch": version("torch"),
        },
    }
