"""Checks of the accelerator, devices and strategy that a user names, before Lightning builds a trainer from them."""

import re

from pytorch_lightning.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.cpu.kinds import bf16_warning, find_cpu
from hsakd_pl.errors import UsageError, did_you_mean

FLOAT16 = ("16", "16-true", "16-mixed")  # Lightning replaces the mixed one by bf16-mixed on a CPU
CHOSEN_BY_LIGHTNING = ("auto", "gpu")  # names that mean whatever the machine has


def check_accelerator(name: object, option: str = "trainer.accelerator") -> None:
    """Raise UsageError if ``name`` is not an accelerator, or not one that this machine has."""
    if not isinstance(name, str) or name == "auto":
        return
    names = sorted({*CHOSEN_BY_LIGHTNING, *AcceleratorRegistry.available_accelerators()})
    if name not in names:
        raise UsageError(
            f"{option}: {name} is not an accelerator: {did_you_mean(name, names)}available are {', '.join(names)}"
        )
    available = _has_gpu() if name == "gpu" else AcceleratorRegistry.get(name).is_available()
    if not available:
        raise UsageError(f"{option}: no {name} was found on this machine: use --{option} cpu")


def check_devices(devices: object, accelerator: object) -> None:
    """Raise UsageError if ``devices`` is not a number of devices, ``auto`` or -1 for all, or the numbers of GPUs."""
    text = str(devices).strip("[] ")
    if not re.fullmatch(r"auto|-1|\d+(\s*,\s*\d*)*", text):
        raise UsageError(
            f"trainer.devices: {devices} is not a number of devices: use for example 2, auto, or 0,3 for two GPUs"
        )
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not _has_gpu())
    if on_cpu and not (text == "auto" or (text.isdigit() and int(text) > 0)):
        raise UsageError(
            f"trainer.devices: {devices} is not a number of processes, which a run on the CPU needs: use 1"
        )


def check_precision(precision: object, accelerator: object) -> None:
    """Raise UsageError for float16 on a CPU, and log a warning of bfloat16 on a CPU that has no instructions for it.

    The backward pass of a convolution in float16 takes tens of times as long there as in float32.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not _has_gpu())
    if not on_cpu:
        return
    kind = find_cpu().kind
    if str(precision) in FLOAT16:
        faster = "bf16-mixed, which this CPU computes in hardware, or 32-true" if kind.has_bf16 else "32-true"
        raise UsageError(f"trainer.precision: {precision} makes a CPU tens of times slower: use {faster}")
    warning = bf16_warning(kind, str(precision))
    if warning is not None:
        rank_zero_info(warning)


def _has_gpu() -> bool:
    return CUDAAccelerator.is_available() or MPSAccelerator.is_available()


def check_strategy(name: object) -> None:
    """Raise UsageError if ``name`` is not a strategy of Lightning."""
    names = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(name, str) and name.lower() not in names:
        raise UsageError(
            f"trainer.strategy: {name} is not a strategy: {did_you_mean(name, names)}for several devices use ddp"
        )
