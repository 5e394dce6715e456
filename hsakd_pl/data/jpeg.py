"""JPEGs decoded on the device: by nvJPEG on an NVIDIA GPU, by libjpeg-turbo on a CPU. Workers only read files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchvision.io
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl.data.images import check_pixels, header, open_image, orientation
from hsakd_pl.data.loader import Batch
from hsakd_pl.data.sources import TransformedBatches, WorkerBatches
from hsakd_pl.errors import UsageError


def read_image(path: str, size: int = 224) -> Tensor:
    """uint8: the bytes (n,) of a JPEG in colour that stands upright, or the pixels (3, H, W) of any other image.

    Raises UsageError as :func:`open_image` does.
    """
    with header(path) as image:
        check_pixels(image, size)
        if (image.format, image.mode) == ("JPEG", "RGB") and orientation(image) == 1:  # decoders leave it as stored
            return torch.from_numpy(np.fromfile(path, np.uint8))
    return pil_to_tensor(open_image(path, size))


def decode_jpegs(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """Bytes (n,) of each JPEG -> uint8 (3, H, W) on ``device``; RuntimeError where one cannot be decoded."""
    return torchvision.io.decode_jpeg(jpegs, torchvision.io.ImageReadMode.RGB, device=device) if jpegs else []


class FileBatches(Dataset[Any]):
    """(epoch, indices) -> what :func:`read_image` gives for each file, in one tensor, with shapes and errors.

    One tensor, since each that a worker sends takes one of the few file descriptors of the process that receives it.
    """

    def __init__(self, batches: TransformedBatches) -> None:
        self.batches = batches

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        errors: list[str] = []
        try:
            images = list(self.batches.opened(key[1], read_image, errors))
        except UsageError as error:
            return error
        flat = torch.cat([torch.empty(0, dtype=torch.uint8), *(image.flatten() for image in images)])
        return (flat, [tuple(image.shape) for image in images]), errors


class DeviceDecodedBatches:
    """Batches whose files ``num_workers`` processes read, and which ``device`` decodes and transforms.

    Random numbers are those of ``batches``, whose workers do it all; pixels differ as decoders and resizing on a device
    round otherwise. What a device cannot decode, PIL does. Raises UsageError where torchvision was built without it.
    """

    def __init__(self, batches: TransformedBatches, num_workers: int, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.files = WorkerBatches(FileBatches(batches), num_workers, pin_memory=False)
        try:
            decode_jpegs([torchvision.io.encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8))], device)
        except (AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"decode_on_device: no JPEG decoder for {device} ({reason}): set it to false") from error

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``; raises UsageError for a broken image."""
        read = self.files.make_batches(epoch, order)
        for batch, ((flat, shapes), errors) in zip(order, read, strict=True):
            indices = batch.tolist()
            sizes = [torch.Size(shape).numel() for shape in shapes]
            images = [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
            found = self._decoded(indices, images, errors)
            yield self.batches.transformed(epoch, indices, found, self.device), self.batches.targets(indices, errors)

    def _decoded(self, indices: list[int], images: list[Tensor], errors: list[str]) -> list[Any]:
        jpegs = [image for image in images if image.ndim == 1]
        try:
            decoded = iter(decode_jpegs(jpegs, self.device))
        except RuntimeError:
            errors.clear()
            return list(self.batches.opened(indices, open_image, errors))
        return [next(decoded) if image.ndim == 1 else image for image in images]
