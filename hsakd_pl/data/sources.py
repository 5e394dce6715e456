"""The two places batches come from: tensors on the device, or DataLoader workers.

What they make depends on (seed, epoch, index) alone: not on the device, nor on the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.images import open_image
from hsakd_pl.data.loader import Batch
from hsakd_pl.data.seeding import AUGMENTATION, derive_seed, seeded_generator
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import shorten


@dataclass(eq=False)
class ResidentTensors:
    """A whole split on its device: a batch is a gather.

    ``images`` (N, 3, S, S), or features (N, D), ``labels`` int64 (N,). Nothing is copied from the host inside an epoch.
    """

    images: Tensor
    labels: Tensor

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        for indices in _on(self.images.device, order):
            yield self.images[indices], self.labels[indices]


def _on(device: torch.device, order: list[Tensor]) -> Sequence[Tensor]:
    """The index tensors on a device, by one copy."""
    return torch.cat([torch.arange(0), *order]).to(device).split([len(indices) for indices in order])


@dataclass(eq=False)
class AugmentedBatches:
    """Batches of images of one size, whoever made them, augmented on ``device``; ``samples``: of the whole split."""

    source: Callable[[int, list[Tensor]], Iterator[Batch]]
    augmentation: PadCropFlip
    samples: int
    seed: int
    device: torch.device

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        generator = seeded_generator(self.seed, AUGMENTATION, epoch)
        draws = self.augmentation.draw(self.samples, generator).to(self.device)
        for indices, batch in zip(_on(self.device, order), self.source(epoch, order), strict=True):
            images, labels = batch
            yield self.augmentation(images.to(self.device, non_blocking=True), draws[indices]), labels


@dataclass(eq=False)
class TransformedBatches(Dataset[Batch | UsageError]):
    """(epoch, indices) -> batch of images opened and transformed one by one; what a DataLoader worker runs.

    ``transform`` takes a PIL image or a tensor (3, H, W) to a tensor (3, size, size), uint8 unless the split is float.
    For prediction, where targets are paths, they become (path, error); ``on_error`` "row" makes broken images black.
    """

    split: Split
    transform: v2.Transform
    size: int
    seed: int
    on_error: str = "raise"

    def __getitem__(self, key: tuple[int, list[int]]) -> Batch | UsageError:
        epoch, indices = key
        errors: list[str] = []
        try:
            images = self.transformed(epoch, indices, self.opened(indices, open_image, errors))
        except UsageError as error:
            return error  # raised in a worker it would arrive wrapped in the worker's traceback
        return images, self.targets(indices, errors)

    def opened(self, indices: list[int], read: Callable[[str, int], Any], errors: list[str]) -> Iterator[Any]:
        """Yield what ``read`` makes of each path, a black pixel (3, 1, 1) or UsageError; append an error for each."""
        for image in self.split.take(indices).images:
            errors.append("")
            try:
                yield read(image, self.size) if isinstance(image, str) else image
            except UsageError as error:
                if self.on_error == "raise" or isinstance(self.split.targets, Tensor):
                    raise
                errors[-1] = str(error)
                yield torch.zeros(3, 1, 1, dtype=torch.uint8)

    def targets(self, indices: list[int], errors: list[str]) -> Any:
        """Labels (B,), or for prediction a list of (path, error)."""
        targets = self.split.take(indices).targets
        return targets if isinstance(targets, Tensor) else list(zip(targets, errors, strict=True))

    def transformed(
        self, epoch: int, indices: list[int], images: Iterable[Image.Image | Tensor], device: torch.device | None = None
    ) -> Tensor:
        """Batch (B, 3, size, size) on ``device``, each image with random numbers out of (seed, epoch, index)."""
        dtype = self.split.images.dtype if isinstance(self.split.images, Tensor) else torch.uint8
        rows = torch.empty(len(indices), 3, self.size, self.size, dtype=dtype, device=device)
        with torch.random.fork_rng(devices=[]):
            for row, index, image in zip(rows, indices, images, strict=True):
                torch.default_generator.manual_seed(derive_seed(self.seed, AUGMENTATION, epoch, index))
                row.copy_(self._made(image, row))
        return rows

    def _made(self, image: Image.Image | Tensor, row: Tensor) -> Tensor:
        """What the transform makes of an image; UsageError where it fails, or that does not fit into its row."""
        try:
            made = self.transform(image)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the transform {self._name()} fails: {error}") from error
        if not isinstance(made, Tensor) or (made.shape, made.dtype) != (row.shape, row.dtype):
            found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise UsageError(
                f"the transform {self._name()} makes {found} of an image, not {row.dtype} {tuple(row.shape)}: end it "
                f"before ToDtype, ToTensor and Normalize, since batches are normalised by mean and std on the device"
            )
        return made

    def _name(self) -> str:
        return shorten([" ".join(repr(self.transform).split())])


class WorkerBatches:
    """Batches made by ``num_workers`` persistent processes, in pinned memory if they go to a GPU."""

    def __init__(self, batches: Dataset[Any], num_workers: int, pin_memory: bool) -> None:
        self._keys: list[tuple[int, list[int]]] = []  # holds the epoch, so persistent workers need no telling
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=self._keys,
            collate_fn=_as_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else every epoch takes a number from everybody's generator
        )

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Any]:
        """Yield the batch of every index tensor in ``order``; raises UsageError for a broken image."""
        self._keys[:] = [(epoch, indices.tolist()) for indices in order]
        for batch in self._loader:
            if isinstance(batch, UsageError):
                raise batch
            images, targets = batch  # pinning turns tuples into lists
            yield images, targets


def _as_is(batch: Any) -> Any:
    return batch
