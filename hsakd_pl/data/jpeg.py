"""Decode JPEGs on the device, by nvJPEG on an NVIDIA GPU or libjpeg-turbo on a CPU; workers only read files."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.io
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import PILToTensor

from hsakd_pl.data.fetched import Source
from hsakd_pl.data.images import check_pixels, header, is_upright_rgb_jpeg, open_image, read_bytes
from hsakd_pl.data.limits import Take
from hsakd_pl.data.loader import Batch
from hsakd_pl.data.sources import BatchKey, TransformedBatches, WorkerBatches
from hsakd_pl.errors import UsageError


def read_image(path: Source, size: int = 224, take: Take | None = None) -> Tensor:
    """Return the bytes (n,) of an upright RGB JPEG, or the pixels (3, H, W) of any other image, both uint8.

    Raises UsageError as :func:`open_image` does.
    """
    with header(path) as image:
        check_pixels(image, size)
        if is_upright_rgb_jpeg(image):
            return torch.from_numpy(read_bytes(path))
    return PILToTensor()(open_image(path, size, take))


def decode_jpegs(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode the bytes (n,) of each JPEG to uint8 (3, H, W) on a device; raise RuntimeError if one is broken."""
    if not jpegs:
        return []
    return torchvision.io.decode_jpeg(jpegs, torchvision.io.ImageReadMode.RGB, device=device)


class FileBatches(Dataset[Any]):
    """Contents of a batch's files, read but not decoded.

    The item of (epoch, indices) is ``((content, shapes), errors)``, where ``content`` (n,) concatenates what
    :func:`read_image` returns for each file. A tensor per file would need a file descriptor per file in the process
    that receives the batch.
    """

    def __init__(self, batches: TransformedBatches) -> None:
        self.batches = batches

    def __getitem__(self, key: BatchKey) -> Any:
        _, indices = key
        errors: list[str] = []
        try:
            images = list(self.batches.opened(indices, read_image, errors))
        except UsageError as error:
            return error
        no_content = torch.empty(0, dtype=torch.uint8)  # torch.cat needs at least one tensor
        content = torch.cat([no_content, *(image.flatten() for image in images)])
        shapes = [tuple(image.shape) for image in images]
        return (content, shapes), errors


class DeviceDecodedBatches:
    """Batches whose files worker processes read, and which a device decodes and transforms.

    Random numbers are those of ``batches`` in workers; pixels differ slightly, since decoders and resizing on a device
    round differently. PIL decodes what the device cannot decode.

    Args:
        batches: opens and transforms images.
        num_workers: number of processes that read files.
        device: device that decodes and transforms.

    Raises UsageError if torchvision has no JPEG decoder for the device.
    """

    def __init__(self, batches: TransformedBatches, num_workers: int, device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.files = WorkerBatches(FileBatches(batches), num_workers, pin_memory=False)
        black = torch.zeros(3, 8, 8, dtype=torch.uint8)
        try:
            decode_jpegs([torchvision.io.encode_jpeg(black)], device)
        except (AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"decode_on_device: no JPEG decoder for {device} ({reason}): set it to false") from error

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``; raise UsageError for a broken image."""
        file_batches = self.files.make_batches(epoch, order)
        for batch_indices, ((content, shapes), errors) in zip(order, file_batches, strict=True):
            indices = batch_indices.tolist()
            sizes = [math.prod(shape) for shape in shapes]
            files = [part.view(shape) for part, shape in zip(content.split(sizes), shapes, strict=True)]
            images = self._decoded(indices, files, errors)
            yield self.batches.transformed(epoch, indices, images, self.device), self.batches.targets(indices, errors)

    def _decoded(self, indices: list[int], files: list[Tensor], errors: list[str]) -> list[Any]:
        """Replace the JPEGs, which are one-dimensional, by their pixels; the other images are decoded already."""
        jpegs = [file for file in files if file.ndim == 1]
        try:
            decoded = iter(decode_jpegs(jpegs, self.device))
        except RuntimeError:
            errors.clear()
            return list(self.batches.opened(indices, open_image, errors))
        return [next(decoded) if file.ndim == 1 else file for file in files]
