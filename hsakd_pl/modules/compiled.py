"""Compilation of what runs every step."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError

CACHE = Path("~/.cache/hsakd_pl/inductor")  # PyTorch's own default is a temporary folder


class Compiled:
    """``function`` compiled for the batch size that it sees first; others, as of an epoch's last batch, run eagerly.

    So nothing is compiled twice. What was compiled is kept for later runs, in ``TORCHINDUCTOR_CACHE_DIR`` if that is
    set. With ``cuda_graphs`` a GPU replays the whole of it: its outputs, gradients included, last until the next call.
    ``options``: more of PyTorch's code generator. Raises UsageError for one that it does not have.
    """

    def __init__(self, function: Callable[..., Any], what: str, cuda_graphs: bool, options: dict[str, Any]) -> None:
        folder = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE.expanduser()))
        options = {"triton.cudagraphs": cuda_graphs, **options}
        try:
            self.compiled = torch.compile(function, options=options, dynamic=False)
        except RuntimeError as error:
            reason = str(error).partition(", known options")[0]  # all of its hundreds
            raise UsageError(f"compile_options does not suit PyTorch {torch.__version__}: {reason}") from error
        how = "with CUDA graphs" if cuda_graphs else "without CUDA graphs"
        self.message = f"Compiling the {what} ({how}); the first time takes a minute or more, then {folder} has it"
        self.function, self.cuda_graphs, self.batch_size = function, cuda_graphs, 0

    def __call__(self, images: Tensor, *labels: Tensor) -> Any:
        if not self.batch_size:
            self.batch_size = len(images)
            rank_zero_info(self.message)
        if len(images) != self.batch_size:
            return self.function(images, *labels)
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(images, *labels)
