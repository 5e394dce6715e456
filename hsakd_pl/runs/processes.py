"""Number of devices and nodes of a run whose processes torchrun started."""

import os
from typing import Any

from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hsakd_pl.errors import UsageError

AUTOMATIC = ("auto", "-1", -1)  # values of devices that mean all of them


def match_torchrun(trainer: Any) -> None:
    """Set a trainer's ``devices`` and ``num_nodes``, unless they are set, to the processes that torchrun started.

    Raises UsageError where they are set to other numbers.
    """
    if not TorchElasticEnvironment.detect():
        return
    processes_per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    processes = int(os.environ["WORLD_SIZE"])
    if trainer.devices in AUTOMATIC:
        trainer.devices = processes_per_node
    if trainer.num_nodes == 1:
        trainer.num_nodes = processes // processes_per_node
    text = str(trainer.devices)
    if isinstance(trainer.devices, list) or "," in text:
        devices = text.count(",") + 1
    else:
        devices = int(text) if text.isdigit() else 0
    if devices * trainer.num_nodes != processes:
        raise UsageError(
            f"trainer.devices is {trainer.devices} and trainer.num_nodes {trainer.num_nodes}, but torchrun started "
            f"{processes} processes: leave both out, or set --trainer.devices auto"
        )
