"""Delay an import that takes a second and 60 MiB, and that no command needs."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NAME = "scipy.signal"
RESTORED = "hamming"  # a name that SciPy has removed, and torchmetrics restores


class Delayed(ModuleType):
    """Stand in for ``scipy.signal`` until anything but the restored name is used, and import it then."""

    hamming = None

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__path__":  # what looks through all modules asks for those
            raise AttributeError(attribute)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        module = import_module(NAME)
        if not hasattr(module, RESTORED):
            setattr(module, RESTORED, module.windows.hamming)
        return getattr(module, attribute)


def delay_scipy_signal() -> None:
    """Let ``import torchmetrics`` import ``scipy.signal``, with 500 modules, only when something uses it.

    torchmetrics does so at its own import, only to restore a name in it, and Lightning imports torchmetrics
    (torchmetrics 1.9.0; ``findings/torchmetrics-imports-scipy-signal.sh``).
    """
    sys.modules.setdefault(NAME, Delayed(NAME))
