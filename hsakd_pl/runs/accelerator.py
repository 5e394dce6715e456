"""Checks of the accelerator, devices and strategy that a user names, before Lightning builds a trainer from them."""

import re

from pytorch_lightning.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from pytorch_lightning.strategies import StrategyRegistry

from hsakd_pl.errors import UsageError, did_you_mean

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
    """Raise UsageError for half precision on a CPU, whose convolutions are a hundred times slower in it."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not _has_gpu())
    if on_cpu and precision == "16-true":
        raise UsageError(
            "trainer.precision: 16-true makes a CPU about a hundred times slower: use bf16-true, bf16-mixed or 32-true"
        )


def _has_gpu() -> bool:
    return CUDAAccelerator.is_available() or MPSAccelerator.is_available()


def check_strategy(name: object) -> None:
    """Raise UsageError if ``name`` is not a strategy of Lightning."""
    names = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(name, str) and name.lower() not in names:
        raise UsageError(
            f"trainer.strategy: {name} is not a strategy: {did_you_mean(name, names)}for several devices use ddp"
        )
