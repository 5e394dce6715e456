"""Bound the size of a network that a file names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.nn as nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import shards_of

ALWAYS_ACCEPTED = 50_000_000  # parameters; they take 200 MB


@contextmanager
def limited_by(weight_file: Path) -> Iterator[None]:
    """Raise UsageError as soon as a network with more parameters than its weight file can hold is created inside.

    A file of a few kB could otherwise name a network that fills the memory before its weights are compared.
    """
    files = [weight_file, *shards_of(weight_file)] if weight_file.is_file() else []
    file_bytes = sum(file.stat().st_size for file in files if file.is_file())
    most = max(ALWAYS_ACCEPTED, file_bytes)  # a parameter takes at least a byte
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is not None and not is_lazy(parameter):
            count += parameter.numel()
        if count > most:
            raise UsageError(
                f"{weight_file} has {file_bytes:,} bytes, which cannot be the weights of the network that is named, "
                f"with more than {most:,} parameters: use the file that belongs to it"
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
