"""Make batches of a data module's splits, shuffled or in order, and normalise them on each device."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.cpu.cores import available_cores
from hsakd_pl.data.augment import PadCropFlip, normalise, strongly_augmented
from hsakd_pl.data.description import Description
from hsakd_pl.data.fetched import Source
from hsakd_pl.data.images import decode_images
from hsakd_pl.data.jpeg import DeviceDecodedBatches
from hsakd_pl.data.limits import PixelBudget, check_batch_size
from hsakd_pl.data.loader import BatchSource, ResumableLoader
from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.data.seeding import AUGMENTATION, STRONG_VIEW
from hsakd_pl.data.sources import AugmentedBatches, ResidentTensors, TransformedBatches, ViewBatches, WorkerBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.data.unlabelled import MixedBatches, UnlabelledSampler, fitted
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

MAX_DEFAULT_WORKERS = 16  # decoding for one GPU saturates with fewer; more only cost memory


class BatchedDataModule(pl.LightningDataModule):
    """Make loaders of the splits that the subclass :class:`hsakd_pl.data.ImageDataModule` reads."""

    splits: dict[str, Split]
    image_size: int
    channels: int = 3  # of the images; as many numbers have mean and std
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    seed: int | None
    augment: bool
    num_workers: int | None
    predict_dir: str | Path | list[str] | None
    on_error: str
    train_transform: PadCropFlip | v2.Transform
    test_transform: v2.Transform | None = None  # None if images have their final size already
    decode_on_device: bool = False
    unlabelled_ratio: float
    unlabelled_data: tuple[Any, Split] | None = None  # makes batches of the unlabelled images
    mixed_chunks: int = 0  # whose training images are shuffled together; 0 shuffles all
    resident_mib: int = 0  # largest size of a decoded split that is kept; files of others are opened in every epoch

    @property
    def description(self) -> Description:
        """Return the description of the data that a network trained on them stores."""
        raise NotImplementedError(f"{type(self).__name__} must implement description")

    def __init__(self) -> None:
        super().__init__()
        self._statistics_on: dict[torch.device, Tensor] = {}
        self._decoded_images: list[tuple[Sequence[Source], Tensor]] = []

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled, augmented batches of the training split.

        They end in the samples' indices if the trainer's module has ``needs_indices``. If it has ``needs_strong_view``,
        images are (2 * B, C, S, S): the usual views, and then the strong views of the same images
        (:meth:`strong_transform`). Raises UsageError for such a module if ``augment`` is off.
        """
        # Lightning sets overfit_batches on the trainer without declaring it
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set by Lightning
        module = getattr(self.trainer, "lightning_module", None)
        return self._loader(
            self.splits["train"],
            self.train_transform if self.augment else None,
            shuffle=not overfits,
            with_indices=getattr(module, "needs_indices", False),  # absent from modules of other packages
            with_strong_view=getattr(module, "needs_strong_view", False),
        )

    def strong_transform(self, resized: bool) -> v2.Transform:
        """Return the transform of one image for its strong view: that of training, RandAugment and an erased square.

        Crops and flips are drawn anew. A subclass may return another one, which makes a uint8 tensor
        (C, image_size, image_size) of a PIL image or a tensor.

        Args:
            resized: the images have their final size already.
        """
        transforms: list[v2.Transform] = []
        if isinstance(self.train_transform, PadCropFlip):
            if not resized and self.test_transform is not None:
                transforms.append(self.test_transform)
            transforms.append(self.train_transform.of_one_image(self.image_size))
        else:
            transforms.append(self.train_transform)
        return v2.Compose([*transforms, *strongly_augmented()])

    def val_dataloader(self) -> ResumableLoader:
        """Return batches of the validation split in a fixed order; each sample is on exactly one device."""
        return self.plain_loader(self.splits["val"])

    def test_dataloader(self) -> ResumableLoader:
        """Return batches of the test split in a fixed order; each sample is on exactly one device."""
        return self.plain_loader(self.splits["test"])

    def predict_dataloader(self) -> ResumableLoader:
        """Return batches of the images in ``predict_dir``, resized and cropped, with (path, error) as targets.

        Raises UsageError if a folder or file is missing, or if a folder contains no image.
        """
        if self.predict_dir is None:
            raise UsageError("predict needs images: set --data.init_args.predict_dir to a folder of images")
        sources = self.predict_dir if isinstance(self.predict_dir, list) else [self.predict_dir]
        paths_by_source = [image_paths(local_path("predict_dir", source), "predict_dir") for source in sources]
        paths = list(dict.fromkeys(chain.from_iterable(paths_by_source)))  # without duplicates
        return self._loader(Split(paths, paths), self.description.transform)

    def plain_loader(self, split: Split, shuffle: bool = False, on_every_device: bool = False) -> ResumableLoader:
        """Return batches without augmentation.

        Args:
            split: images with their labels.
            shuffle: shuffle the samples in every epoch.
            on_every_device: give all batches to every device instead of a part to each.
        """
        return self._loader(split, None, shuffle, on_every_device)

    def resident(self, split: Split) -> Tensor | None:
        """Return the images of a split at test size (N, C, S, S), decoded once; None for files beyond resident_mib."""
        if isinstance(split.images, Tensor):
            return split.images if self.test_transform is None else self.test_transform(split.images)
        for paths, images in self._decoded_images:
            if paths is split.images:
                return images
        decoded_bytes = len(split.images) * self.channels * self.image_size**2
        if self.test_transform is None or decoded_bytes > self.resident_mib * 2**20:
            return None
        images = decode_images(split.images, self.image_size, self.test_transform, self.channels)
        self._decoded_images.append((split.images, images))
        return images

    def _loader(
        self,
        split: Split,
        transform: PadCropFlip | v2.Transform | None,
        shuffle: bool = False,
        on_every_device: bool = False,
        with_indices: bool = False,
        with_strong_view: bool = False,
    ) -> ResumableLoader:
        sampler = self.make_sampler(len(split.targets), shuffle, on_every_device)
        if shuffle and self.mixed_chunks:
            sampler = replace(sampler, mixed_chunks=self.mixed_chunks, chunks=self.chunks_of(split))
        count = min(self.batch_size // sampler.world_size, len(split.targets))
        check_batch_size(count, self.image_size, self.channels)
        mixes = split is self.splits.get("train") and shuffle and "unlabelled" in self.splits
        if mixes:
            pool = len(self.splits["unlabelled"].targets)
            sampler = UnlabelledSampler(**vars(sampler), pool=pool, ratio=self.unlabelled_ratio)
        paths = split.images if isinstance(split.images, list) else None
        sources = [self._source(split, transform, len(sampler))]
        if with_strong_view:
            sources.append(self._strong_source(split, transform, len(sampler)))
        if mixes:
            sources = self._mixed(sources, transform, len(sampler))
        source = ViewBatches(sources, self._device) if with_strong_view else sources[0]
        return ResumableLoader(source, sampler, with_indices, paths)

    def _mixed(
        self, views: Sequence[BatchSource], transform: PadCropFlip | v2.Transform | None, num_batches: int
    ) -> list[BatchSource]:
        """Return the sources of the views of the labelled images, each with unlabelled images after them."""
        split = self.splits["unlabelled"]
        if self.unlabelled_data is None:
            self.unlabelled_data = fitted(self, split)
        other, split = self.unlabelled_data
        makers = (other._source, other._strong_source)[: len(views)]
        num_labelled = len(self.splits["train"].targets)
        return [
            MixedBatches(view, make(split, transform, num_batches), num_labelled)
            for view, make in zip(views, makers, strict=True)
        ]

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _strong_source(
        self, split: Split, transform: PadCropFlip | v2.Transform | None, num_batches: int
    ) -> BatchSource:
        """Return the source of the strong views of a split's images; ``transform`` is that of the usual views."""
        if transform is None:
            raise UsageError("augment is off, but the module trains on a strongly augmented view too: leave it on")
        if self.channels not in (1, 3) and type(self).strong_transform is BatchedDataModule.strong_transform:
            raise UsageError(
                f"RandAugment of the strongly augmented view takes grey or RGB images, not {self.channels} channels: "
                "override strong_transform in a data module of your own, or choose a method without that view"
            )
        images = self.resident(split) if isinstance(transform, PadCropFlip) else None
        if images is not None:
            split = Split(images, split.targets)
        return self._source(split, self.strong_transform(images is not None), num_batches, STRONG_VIEW)

    def _source(
        self,
        split: Split,
        transform: PadCropFlip | v2.Transform | None,
        num_batches: int,
        stream: int = AUGMENTATION,
    ) -> BatchSource:
        device = self._device
        if isinstance(transform, PadCropFlip):  # augments whole batches, whatever makes them
            source = self._source(split, None, num_batches)
            return AugmentedBatches(source, transform, len(split.targets), self.seed or 0, device)
        if transform is None:
            images = self.resident(split)
            if images is not None:
                return ResidentTensors(images.to(device), split.targets.to(device))
            transform = self.test_transform
        if transform is None:
            raise UsageError(f"{type(self).__name__}.read returned files: set a test_transform that resizes images")
        num_workers = self._num_workers(num_batches)
        budget = PixelBudget(between_processes=num_workers > 0)
        batches = TransformedBatches(
            split, transform, self.image_size, self.seed or 0, self.on_error, budget, stream, self.channels
        )
        if self.decode_on_device and not isinstance(split.images, Tensor):
            return DeviceDecodedBatches(batches, num_workers, device)
        return WorkerBatches(batches, num_workers, pin_memory=device.type == "cuda")

    def _num_workers(self, num_batches: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        local_devices = 1 if self.trainer is None else self.trainer.num_devices
        cores = available_cores() // local_devices - 1  # one is left for the process that trains
        return min(MAX_DEFAULT_WORKERS, max(1, cores), num_batches)

    def make_sampler(self, num_samples: int, shuffle: bool, on_every_device: bool = False) -> GlobalBatchSampler:
        """Return the order of the samples, cut into batches and divided among the trainer's devices.

        Args:
            num_samples: number of samples in the split.
            shuffle: draw a new order in every epoch.
            on_every_device: give all batches to every device.
        """
        trainer = None if on_every_device else self.trainer
        rank = 0 if trainer is None else trainer.global_rank
        world_size = 1 if trainer is None else trainer.world_size
        return GlobalBatchSampler(num_samples, self.batch_size, shuffle, self.seed or 0, rank, world_size)

    def chunks_of(self, split: Split) -> Tensor:
        """Return the number of the chunk of each sample (N,), for data with ``mixed_chunks``."""
        raise NotImplementedError(f"{type(self).__name__} must implement chunks_of, or leave mixed_chunks 0")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Any, ...]:
        """Normalise uint8 images on the device; leave float images unchanged."""
        images, *targets = batch
        if images.dtype == torch.uint8:
            mean, std = self._statistics(images.device)
            images = normalise(images, mean, std)
            if self.trainer is not None:  # networks in bf16-true and 64-true take no float32
                images = self.trainer.precision_plugin.convert_input(images)
        return images, *targets

    def use_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise with another mean and std from now on."""
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._statistics_on.clear()

    def _statistics(self, device: torch.device) -> Tensor:
        """Return mean and standard deviation (2, C, 1, 1), copied to a device once: a copy per step would stall it."""
        if device not in self._statistics_on:
            statistics = torch.tensor([list(self.mean), list(self.std)], device=device)
            self._statistics_on[device] = statistics[:, :, None, None]
        return self._statistics_on[device]
