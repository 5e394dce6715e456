"""The callback that makes a module fast for as long as a fit lasts."""

from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch

from hsakd_pl.fast import winograd
from hsakd_pl.fast.compiled import Compiled
from hsakd_pl.fast.folded import Folded
from hsakd_pl.modules import HSAKDModule

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Fast(pl.Callback):
    """Converts a module when a run starts and takes all of it back when it ends, by an exception too.

    Every module brings one along (``fast=True``). Weights lie channels_last in memory; in a fit, teachers answer by a
    folded copy, 3x3 convolutions on a CPU take Winograd's algorithm, and ``compile`` compiles the training step and the
    validation of the class head. Where ``trainer.deterministic`` asks for it, all that sums in an order which depends
    on the number of threads stays off.

    Args:
        compile: whether to compile; a dictionary is settings of PyTorch's code generator for it.
    """

    def __init__(self, compile: bool | dict[str, Any] = False) -> None:
        self.compile, self.undo = compile, ExitStack()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        module.to(memory_format=torch.channels_last)  # 1.2 times as fast on a CPU
        self.undo.callback(module.to, memory_format=torch.contiguous_format)

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, HSAKDModule)
        deterministic = torch.are_deterministic_algorithms_enabled()
        own = set(module.modules())
        for teacher in (frozen for frozen in module.frozen if frozen.network not in own):
            dtype = HALF.get(str(trainer.precision))
            teacher.stand_in = self.undo.enter_context(Folded(teacher.network, dtype, not deterministic))
            self.undo.callback(setattr, teacher, "stand_in", None)
        if not deterministic:
            winograd.convert(module.networks)
            self.undo.callback(winograd.revert, module.networks)
        if self.compile:
            self._compile(trainer, module)

    def _compile(self, trainer: pl.Trainer, module: HSAKDModule) -> None:
        # not with several devices, whose norms' buffers are synchronised, nor where gradients must outlast a step
        alone = trainer.world_size == trainer.accumulate_grad_batches == 1
        options = {"triton.cudagraphs": alone and module.device.type == "cuda"}
        options |= self.compile if isinstance(self.compile, dict) else {}
        for name in ("losses", "classify"):  # shadowed on the instance
            setattr(module, name, Compiled(getattr(module, name), options))
            self.undo.callback(delattr, module, name)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.undo.close()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.undo.close()
