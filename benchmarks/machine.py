"""The processor and the software that a measurement depends on."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hsakd_pl

# Flag of the processor and its name, from the fastest instructions for bf16 and float32 down
INSTRUCTION_SETS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx512f": "AVX512", "avx2": "AVX2"}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and its best instruction set, such as ``AMD EPYC, AVX2``."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model_name = re.search(r"model name\s*: (.*)", text)
    name = model_name[1] if model_name else platform.processor()
    flags = set(text.split())
    supported = [instructions for flag, instructions in INSTRUCTION_SETS.items() if flag in flags]
    return f"{name}, {supported[0] if supported else platform.machine()}"


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
