"""Compilation of the functions that run in every step."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hsakd_pl.errors import UsageError

MINIMUM_TORCH = "2.9"  # older versions split the training step of several methods into many graphs


class Compiled:
    """A function, compiled for the largest batch size once it occurs a second time; other sizes run eagerly.

    Thus nothing is compiled for the smaller last batch of an epoch, wherever a resumed run begins. With CUDA graphs the
    outputs, gradients included, are valid until the next call. Raises UsageError for ``options`` that PyTorch's code
    generator does not have.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        if torch.__version__ < MINIMUM_TORCH:
            raise UsageError(
                f"compile: PyTorch {MINIMUM_TORCH} or newer is needed, but {torch.__version__} is installed; "
                "update PyTorch, or leave compile out"
            )
        try:
            self.compiled = torch.compile(function, options=options, dynamic=False)
        except RuntimeError as error:
            reason = str(error).partition(", known options")[0]  # all of its hundreds
            raise UsageError(f"compile: settings that PyTorch {torch.__version__} does not have: {reason}") from error
        self.function = function
        self.graphs = options["triton.cudagraphs"]
        self.largest = 0
        self.started = False

    def __call__(self, *arguments: Any) -> Any:
        size = next(len(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
        if size != self.largest:
            self.largest = max(size, self.largest)
            return self.function(*arguments)
        if not self.started:
            self.started = True
            graphs = "with" if self.graphs else "without"
            rank_zero_info(f"Compiling {self.function.__name__} {graphs} CUDA graphs, which takes a minute or more")
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*arguments)
