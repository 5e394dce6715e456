"""How many devices and nodes a run has, where torchrun started its processes."""

import os
from typing import Any

from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hsakd_pl.errors import UsageError

LEFT_OUT = ("auto", "-1", -1)  # of devices: all there are


def match_torchrun(trainer: Any) -> None:
    """Fill in a trainer's ``devices`` and ``num_nodes``, where they were left out, with what torchrun started.

    Raises UsageError where other numbers were given.
    """
    if not TorchElasticEnvironment.detect():
        return
    here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if trainer.devices in LEFT_OUT:
        trainer.devices = here
    if trainer.num_nodes == 1:
        trainer.num_nodes = world // here
    listed = isinstance(trainer.devices, list) or "," in str(trainer.devices)
    given = str(trainer.devices).count(",") + 1 if listed else int(trainer.devices)
    if given * trainer.num_nodes != world:
        raise UsageError(
            f"trainer.devices is {trainer.devices} and trainer.num_nodes {trainer.num_nodes}, but torchrun started "
            f"{world} processes: leave both out, here with --trainer.devices auto"
        )
