"""The processes of a run that other programs started: torchrun, SLURM, MPI."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hsakd_pl.errors import UsageError
from hsakd_pl.files.lock import sole_writer

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


def restarts_by_torchrun() -> bool:
    """Return whether torchrun starts this command line again if a process fails (``--max-restarts``)."""
    return TorchElasticEnvironment.detect() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


@contextmanager
def sole_writers(trainer: pl.Trainer) -> Iterator[None]:
    """Let the first process of a run lock its folder; if that is refused, every process raises the UsageError.

    The others would wait for the first one otherwise. Processes that Lightning itself starts are started after this.
    """
    environment = trainer._accelerator_connector.cluster_environment
    with ExitStack() as stack:
        refusal = None
        if trainer.is_global_zero:
            try:
                stack.enter_context(sole_writer(trainer.default_root_dir))
            except UsageError as error:
                refusal = str(error)
        if trainer.world_size > 1 and not isinstance(environment, LightningEnvironment):
            trainer.strategy.setup_environment()
            refusal = trainer.strategy.broadcast(refusal)
        if refusal is not None:
            raise UsageError(refusal)
        yield
