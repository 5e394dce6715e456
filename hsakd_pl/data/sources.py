"""Make the batches of an epoch from tensors on the device or from files that DataLoader workers open.

Batches depend on (seed, epoch, index) alone, not on the device or the number of workers.
"""

import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.data.crops import reader_for
from hsakd_pl.data.fetched import Source
from hsakd_pl.data.images import Opened
from hsakd_pl.data.limits import PixelBudget, Take
from hsakd_pl.data.loader import Batch, BatchSource
from hsakd_pl.data.seeding import AUGMENTATION, derive_seed, seeded_generator
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import shorten

BatchKey = tuple[int, list[int]]  # epoch and sample indices of a batch


@dataclass(eq=False)
class ResidentTensors:
    """A whole split on its device; a batch is one gather, and nothing is copied from the host inside an epoch.

    Args:
        images: images (N, C, S, S), or features (N, D).
        labels: int64 labels (N,).
    """

    images: Tensor
    labels: Tensor

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        for indices in _copied_at_once(order, self.images.device):
            yield self.images[indices], self.labels[indices]


def _copied_at_once(order: list[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Copy the index tensors to a device in one transfer."""
    no_indices = torch.arange(0)  # torch.cat needs at least one tensor
    return torch.cat([no_indices, *order]).to(device).split([len(indices) for indices in order])


@dataclass(eq=False)
class AugmentedBatches:
    """Batches of another source, augmented on a device.

    Args:
        source: makes batches of images that all have one size.
        augmentation: augments a whole batch.
        num_samples: number of samples in the split.
        seed: seed of the augmentation.
        device: device of the augmented images.
    """

    source: BatchSource
    augmentation: PadCropFlip
    num_samples: int
    seed: int
    device: torch.device

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        generator = seeded_generator(self.seed, AUGMENTATION, epoch)
        draws = self.augmentation.draw(self.num_samples, generator).to(self.device)
        batches = self.source.make_batches(epoch, order)
        for indices, (images, labels) in zip(_copied_at_once(order, self.device), batches, strict=True):
            yield self.augmentation(images.to(self.device, non_blocking=True), draws[indices]), labels


@dataclass(eq=False)
class ViewBatches:
    """Batches of V views of the same images, (V * B, C, S, S), ordered by view, with labels (B,).

    Args:
        sources: makes the batches of each view, all on one device.
        device: device of the images.
    """

    sources: Sequence[BatchSource]
    device: torch.device

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Batch]:
        """Yield the batch of every index tensor in ``order``."""
        batches = [source.make_batches(epoch, order) for source in self.sources]
        for views in zip(*batches, strict=True):
            images = [view.to(self.device, non_blocking=True) for view, _ in views]
            yield torch.cat(images), views[0][1]


@dataclass(eq=False)
class TransformedBatches(Dataset[Batch | UsageError]):
    """Batches whose images are opened and transformed one by one, as in a DataLoader worker.

    The key of a batch is (epoch, indices).

    Args:
        split: images, paths of files, or pictures to fetch, with their targets. For prediction the targets are the
            paths too, and batches hold (path, error) in their place.
        transform: transforms a PIL image or a tensor (C, H, W) into a tensor (C, size, size), uint8 unless the images
            of the split are float.
        size: side of the transformed images.
        seed: seed of the random transforms.
        on_error: ``raise`` for a broken image; with ``row``, broken images are black in prediction.
        budget: bounds what processes decode at one time.
        stream: stream of the seed that the random numbers come from.
        channels: number of channels C.
    """

    split: Split
    transform: v2.Transform
    size: int
    seed: int
    on_error: str = "raise"
    budget: PixelBudget = field(default_factory=partial(PixelBudget, between_processes=False))
    stream: int = AUGMENTATION
    channels: int = 3

    def __post_init__(self) -> None:
        self.read = partial(reader_for(self.transform), channels=self.channels)

    def __getitem__(self, key: BatchKey) -> Batch | UsageError:
        epoch, indices = key
        errors: list[str] = []
        try:
            images = self.transformed(epoch, indices, self.opened(indices, self.read, errors))
        except UsageError as error:
            return error  # raised in a worker it would arrive wrapped in the worker's traceback
        return images, self.targets(indices, errors)

    def opened(self, indices: list[int], read: Callable[[Source, int, Take], Any], errors: list[str]) -> Iterator[Any]:
        """Yield the images at ``indices``, and append an error message, or an empty one, for each to ``errors``.

        Args:
            indices: samples of the batch.
            read: opens a path for the size that the image will be resized to, and takes its pixels from the budget.
            errors: list to append to; a broken image is replaced by one black pixel (C, 1, 1) unless it raises.
        """
        for image in self.split.take(indices).images:
            errors.append("")
            if isinstance(image, Tensor):
                yield image
                continue
            try:
                with self.budget.lease() as take:
                    yield read(image, self.size, take)
            except UsageError as error:
                predicts = not isinstance(self.split.targets, Tensor)
                if self.on_error == "raise" or not predicts:
                    raise
                errors[-1] = str(error)
                yield torch.zeros(self.channels, 1, 1, dtype=torch.uint8)

    def targets(self, indices: list[int], errors: list[str]) -> Any:
        """Return labels (B,), or for prediction a list of (path, error)."""
        targets = self.split.take(indices).targets
        if isinstance(targets, Tensor):
            return targets
        return list(zip(targets, errors, strict=True))

    def transformed(
        self, epoch: int, indices: list[int], images: Iterable[Opened], device: torch.device | None = None
    ) -> Tensor:
        """Return the transformed images (B, C, size, size) on a device.

        The random numbers of an image depend on (seed, epoch, index); PyTorch's generator is left as it was.
        """
        dtype = self.split.images.dtype if isinstance(self.split.images, Tensor) else torch.uint8
        batch = torch.empty(len(indices), self.channels, self.size, self.size, dtype=dtype, device=device)
        with torch.random.fork_rng(devices=[]):
            for row, index, image in zip(batch, indices, images, strict=True):
                torch.default_generator.manual_seed(derive_seed(self.seed, self.stream, epoch, index))
                row.copy_(self._transform(image, row.shape, dtype))
        return batch

    def _transform(self, image: Opened, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Transform an image; raise UsageError if that fails or returns another shape or dtype."""
        try:
            output = self.transform(image)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the transform {self._transform_name()} fails: {error}") from error
        if not isinstance(output, Tensor):
            description = type(output).__name__
        elif (output.shape, output.dtype) != (shape, dtype):
            description = f"{output.dtype} {tuple(output.shape)}"
        else:
            return output
        raise UsageError(
            f"the transform {self._transform_name()} makes {description} of an image, not {dtype} {tuple(shape)}: end "
            "it before ToDtype, ToTensor and Normalize, since batches are normalised by mean and std on the device"
        )

    def _transform_name(self) -> str:
        return shorten([" ".join(repr(self.transform).split())])


class WorkerBatches:
    """Batches made by persistent worker processes.

    Args:
        batches: makes a batch from a key (epoch, indices), or returns a UsageError.
        num_workers: number of processes; 0 makes batches in the main process.
        pin_memory: put batches into pinned memory, for faster copies to a GPU.
    """

    def __init__(self, batches: Dataset[Any], num_workers: int, pin_memory: bool) -> None:
        self._keys: list[BatchKey] = []  # keys hold the epoch, so that persistent workers need not be told
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=self._keys,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_main_process,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # otherwise every epoch draws a number from PyTorch's global generator
        )
        # Collected as part of a cycle, the queues would close before the workers are told to end, for each of which
        # PyTorch then waits 5 s
        weakref.finalize(self, _release, self._loader).atexit = False

    def make_batches(self, epoch: int, order: list[Tensor]) -> Iterator[Any]:
        """Yield the batch of every index tensor in ``order``; raise UsageError for a broken image."""
        self._keys[:] = [(epoch, indices.tolist()) for indices in order]
        for batch in self._loader:
            if isinstance(batch, UsageError):
                raise batch
            images, targets = batch
            yield images, targets  # a tuple, although pinning makes lists of tuples


def _release(loader: DataLoader[Any]) -> None:
    """Do nothing: the loader ends its workers when the last reference to it, that of the finalizer, is gone."""


def _leave_signals_to_main_process(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which may reach all processes, unless the main process sends SIGTERM to end a worker.

    Where the sender is not known (macOS), SIGTERM ends the worker. The end of the main process ends it, too: PyTorch
    watches the parent alone, and where that is a fork server, the workers of a killed run would stay (torch 2.15.0;
    ``findings/torch-workers-outlive-a-killed-run.sh``).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main_process = multiprocessing.parent_process()  # not the parent, which may be a fork server
    if main_process is None:
        return
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in the threads that are started from here on
        threading.Thread(target=_end_after, args=(_wait_for_sigterm, main_process.pid), daemon=True).start()
    threading.Thread(target=_end_after, args=(main_process.join,), daemon=True).start()


def _end_after(wait: Callable[..., None], *arguments: Any) -> None:
    wait(*arguments)
    os._exit(0)


def _wait_for_sigterm(sender: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass


def _unchanged(batch: Any) -> Any:
    return batch
