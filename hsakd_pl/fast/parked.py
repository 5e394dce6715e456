"""Keep the weights of a network in a file while a copy of it computes in its place."""

import mmap
from itertools import chain
from tempfile import TemporaryFile
from typing import IO

import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, UntypedStorage

ALIGNMENT = 64  # bytes, as of the tensors that PyTorch allocates


class Parked:
    """The parameters and buffers of a network on a CPU, moved to a temporary file that is mapped into memory.

    Their values stay the same, and the system reads them from the file when something uses them. The file has no name,
    and disappears with the last tensor in it. Tensors on other devices stay where they are, and so do all of them if
    the file cannot be written.

    Args:
        network: network whose tensors are moved, in place.
    """

    def __init__(self, network: nn.Module) -> None:
        tensors = [tensor for tensor in chain(network.parameters(), network.buffers()) if _is_movable(tensor)]
        self.tensors = tensors
        self.mapping: mmap.mmap | None = None
        storages = {storage.data_ptr(): storage for storage in map(Tensor.untyped_storage, tensors)}
        if not storages:
            return
        try:
            with TemporaryFile() as file:
                offsets = [_write(file, storage) for storage in storages.values()]
                file.flush()
                self.mapping = mmap.mmap(file.fileno(), file.tell())
        except OSError as error:  # no space, or no folder for temporary files
            rank_zero_info(f"The weights of {type(network).__name__} stay in memory next to their copy: {error}")
            return
        places = dict(zip(storages, offsets, strict=True))
        for tensor in tensors:
            storage = tensor.untyped_storage()
            mapped = torch.frombuffer(
                self.mapping, dtype=torch.uint8, count=storage.nbytes(), offset=places[storage.data_ptr()]
            )
            tensor.data = _like(tensor, mapped.untyped_storage())

    def release(self) -> None:
        """Let the system take back the memory of what was read from the file."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def restore(self) -> None:
        """Move the tensors back to memory."""
        if self.mapping is not None:
            for tensor in self.tensors:
                tensor.data = _like(tensor, tensor.untyped_storage().clone())


def _is_movable(tensor: Tensor) -> bool:
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_inference()
    return is_plain and tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() > 0


def _write(file: IO[bytes], storage: UntypedStorage) -> int:
    """Write the bytes of a storage at the end of a file; returns the position of the first."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    position = file.tell()
    file.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
    return position


def _like(tensor: Tensor, storage: UntypedStorage) -> Tensor:
    """Return a tensor in another storage that is arranged as a tensor is in its own."""
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
