"""Compilation of what runs every step."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

CACHE = Path("~/.cache/hsakd_pl/inductor")  # PyTorch's own default is a temporary folder


class Compiled:
    """``function`` compiled for the batch size that it sees first; others, as of an epoch's last batch, run eagerly.

    So nothing is compiled twice. On a single GPU CUDA graphs replay the step; under DDP they could not (Inductor leaves
    them out for batch norms that synchronise their buffers), and a CPU has none. What was compiled is kept for later
    runs, in ``TORCHINDUCTOR_CACHE_DIR`` if that is set.
    """

    def __init__(self, function: Callable[..., Any], what: str, device: torch.device, world_size: int) -> None:
        folder = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE.expanduser()))
        self.cuda_graphs = device.type == "cuda" and world_size == 1
        mode = "reduce-overhead" if self.cuda_graphs else "default"
        self.function, self.compiled = function, torch.compile(function, mode=mode, dynamic=False)
        self.message = f"Compiling the {what} ({mode}); the first time takes a minute or more, then {folder} has it"
        self.batch_size: int | None = None

    def __call__(self, images: Tensor, *labels: Tensor) -> Any:
        if self.batch_size is None:
            self.batch_size = len(images)
            rank_zero_info(self.message)
        if len(images) != self.batch_size:
            return self.function(images, *labels)
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(images, *labels)
