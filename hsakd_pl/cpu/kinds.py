"""Tell what a CPU computes in hardware: its matrix or vector instructions, and bfloat16."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CPUINFO = Path("/proc/cpuinfo")


class Kind(NamedTuple):
    """The instructions that CPUs of one kind have for matrices and for bfloat16.

    Attributes:
        name: the instructions by which a CPU belongs to the kind.
        has_bf16: it multiplies bfloat16 in hardware.
        bf16_speed: training steps in ``bf16-mixed`` per step in float32, None where nobody has measured it.
    """

    name: str
    has_bf16: bool
    bf16_speed: float | None = None


# Capability in PyTorch's spelling -> kind; the first one that a CPU has counts. Speeds, on two cores and with fast: on a
# Xeon with AMX the median of the pairs in docs/speed.md, batch 16 (with batch 64, wrn_40_2 -> wrn_16_2 has 1.8); the same
# pair, batch 64, on two EPYCs (45 and 58 images/s on one, 2.1 and 2.0 s per step on the other); with AVX2 resnet20, batch
# 16, images of 16 x 16 (61 and 355 ms) and of 32 x 32 (191 and 1,228 ms), on one core of an EPYC.
KINDS = {
    "amx_bf16": Kind("AMX", has_bf16=True, bf16_speed=1.3),
    "avx512_bf16": Kind("AVX-512 with bf16", has_bf16=True, bf16_speed=1.2),
    "avx512_f": Kind("AVX-512", has_bf16=False),
    "avx2": Kind("AVX2", has_bf16=False, bf16_speed=1 / 6),
    "sve_bf16": Kind("ARM SVE with bf16", has_bf16=True),
    "bf16": Kind("ARM with bf16", has_bf16=True),
    "sve": Kind("ARM SVE", has_bf16=False),
    "neon": Kind("ARM", has_bf16=False),
}
OTHER = Kind("no vector instructions that PyTorch uses", has_bf16=False)
FLAGS = {"avx512f": "avx512_f", "svebf16": "sve_bf16", "asimd": "neon"}  # Linux's spelling -> PyTorch's


class CPU(NamedTuple):
    """A CPU: its model's name, and its kind."""

    model: str
    kind: Kind


def find_cpu() -> CPU:
    """Return the CPU of this machine."""
    import torch  # slow to import, and not needed to read a /proc/cpuinfo

    cpuinfo = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    # PyTorch 2.6 has no public function for it
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else None
    return cpu_of(cpuinfo, capabilities)


def cpu_of(cpuinfo: str, capabilities: Mapping[str, Any] | None = None) -> CPU:
    """Return the CPU that is described by the content of ``/proc/cpuinfo``, empty on other systems than Linux.

    Args:
        cpuinfo: content of the file.
        capabilities: what PyTorch has found out, if it tells; otherwise the flags of ``cpuinfo`` count.
    """
    entries = dict(re.findall(r"^([^\t:]+)\s*: *(.*?) *$", cpuinfo, re.MULTILINE))
    if capabilities is None:
        flags = (entries.get("flags") or entries.get("Features") or "").split()
        capabilities = {FLAGS.get(flag, flag): True for flag in flags}
    kinds = [kind for capability, kind in KINDS.items() if capabilities.get(capability)]
    model = entries.get("model name") or capabilities.get("cpu_name") or platform.machine() or "CPU"
    return CPU(model, kinds[0] if kinds else OTHER)


def bf16_advice(kind: Kind) -> str | None:
    """Return a sentence that recommends bfloat16 to a run in float32, None on a CPU without it."""
    if not kind.has_bf16:
        return None
    gain = "may be faster" if kind.bf16_speed is None else f"is about {kind.bf16_speed} times as fast"
    return f"this CPU computes bf16 in hardware: --trainer.precision bf16-mixed {gain}; results: docs/speed.md"


def bf16_warning(kind: Kind, precision: str) -> str | None:
    """Return a sentence that warns of bfloat16 on a CPU that computes it in float32, None on others."""
    if kind.has_bf16 or not precision.startswith("bf16"):
        return None
    loss = (
        "may be slower than" if kind.bf16_speed is None else f"takes about {1 / kind.bf16_speed:.0f} times as long as"
    )
    return f"trainer.precision: this CPU ({kind.name}) has no bf16 instructions: {precision} {loss} 32-true"
