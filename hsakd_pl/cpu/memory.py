"""Keep what a run frees for its next step, but not in between tensors that stay."""

from typing import Any

import pytorch_lightning as pl

from hsakd_pl.cpu.start import map_tensors, reuse_memory


class ReusedMemory(pl.Callback):
    """Reuse freed memory from the second training step on, when weights and the optimizer's state have their places."""

    def __init__(self) -> None:
        self.reuses = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.reuses = stage != "fit"
        if self.reuses:
            reuse_memory()
        else:
            map_tensors()

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.reuses:
            self.reuses = True
            reuse_memory()

    def teardown(self, *_: Any, **__: Any) -> None:
        reuse_memory()

    on_exception = teardown
