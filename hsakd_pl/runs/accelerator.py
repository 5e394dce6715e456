"""Checks of the accelerator and strategy that a user names, before Lightning builds a trainer from them."""

from pytorch_lightning.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from pytorch_lightning.strategies import StrategyRegistry

from hsakd_pl.errors import UsageError, did_you_mean

CHOSEN_BY_LIGHTNING = ("auto", "gpu")  # names that stand for whatever the machine has


def check_accelerator(name: object, option: str = "trainer.accelerator") -> None:
    """Raise UsageError if ``name`` is not an accelerator, or not one that this machine has."""
    if not isinstance(name, str) or name == "auto":
        return
    names = sorted({*CHOSEN_BY_LIGHTNING, *AcceleratorRegistry.available_accelerators()})
    if name not in names:
        raise UsageError(
            f"{option}: {name} is not an accelerator: {did_you_mean(name, names)}available are {', '.join(names)}"
        )
    if name == "gpu":
        available = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    else:
        available = AcceleratorRegistry.get(name).is_available()
    if not available:
        raise UsageError(f"{option}: no {name} was found on this machine: use --{option} cpu")


def check_strategy(name: object) -> None:
    """Raise UsageError if ``name`` is not a strategy of Lightning."""
    names = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(name, str) and name.lower() not in names:
        raise UsageError(
            f"trainer.strategy: {name} is not a strategy: {did_you_mean(name, names)}for several devices use ddp"
        )
