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

    So nothing is compiled twice. What was compiled is kept for later runs, in ``TORCHINDUCTOR_CACHE_DIR`` if that is
    set. With ``cuda_graphs`` a GPU replays the whole of it: its outputs, gradients included, last until the next call.
    """

    def __init__(self, function: Callable[..., Any], what: str, cuda_graphs: bool) -> None:
        folder = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE.expanduser()))
        mode = "reduce-overhead" if cuda_graphs else "default"
        self.function, self.compiled = function, torch.compile(function, mode=mode, dynamic=False)
        self.message = f"Compiling the {what} ({mode}); the first time takes a minute or more, then {folder} has it"
        self.cuda_graphs, self.batch_size = cuda_graphs, 0

    def __call__(self, images: Tensor, *labels: Tensor) -> Any:
        if not self.batch_size:
            self.batch_size = len(images)
            rank_zero_info(self.message)
        if len(images) != self.batch_size:
            return self.function(images, *labels)
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(images, *labels)
