"""Batches of a data module's splits: shuffled or in order, for each device its part, normalised there."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import suggested_max_num_workers
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip, normalise
from hsakd_pl.data.description import Description
from hsakd_pl.data.images import decode_images
from hsakd_pl.data.jpeg import DeviceDecodedBatches
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.data.sources import AugmentedBatches, ResidentTensors, TransformedBatches, WorkerBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

MAX_DEFAULT_WORKERS = 16  # decoding for one GPU saturates before; more only cost memory


class BatchedDataModule(pl.LightningDataModule):
    """Makes loaders of the splits that :class:`hsakd_pl.data.ImageDataModule`, which derives from it, has read."""

    splits: dict[str, Split]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    seed: int | None
    augment: bool
    num_workers: int | None
    predict_dir: str | Path | None
    on_error: str
    train_transform: PadCropFlip | v2.Transform
    test_transform: v2.Transform | None = None  # None: images have their final size
    decode_on_device: bool = False
    resident_mib: int = 0  # what the files of a split may take once they are decoded; others are opened every epoch

    @property
    def description(self) -> Description:
        """What a network that learns these data has to know of them."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._statistics_on: dict[torch.device, Tensor] = {}
        self._decoded: list[tuple[list[str], Tensor]] = []

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented batches of the training split, with the samples' indices if the module needs them."""
        # Lightning sets overfit_batches on the trainer without declaring it
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        loader = self._loader(self.splits["train"], self.train_transform if self.augment else None, not overfit)
        # a module of the user's own does not say
        loader.indexed = getattr(getattr(self.trainer, "lightning_module", None), "needs_indices", False)
        return loader

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the validation split in a fixed order, each sample once over all devices."""
        return self.plain_loader(self.splits["val"])

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split in a fixed order, each sample once over all devices."""
        return self.plain_loader(self.splits["test"])

    def predict_dataloader(self) -> ResumableLoader:
        """Every image below ``predict_dir``, resized and cropped, in batches with (path, error) instead of labels.

        Raises UsageError if the folder is missing or holds no image.
        """
        if self.predict_dir is None:
            raise UsageError("predict needs images: set --data.init_args.predict_dir to a folder of them")
        paths = image_paths(local_path("predict_dir", self.predict_dir), "predict_dir")
        return self._loader(Split(paths, paths), self.description.transform)

    def plain_loader(self, split: Split, shuffle: bool = False, everywhere: bool = False) -> ResumableLoader:
        """Batches without augmentation; ``everywhere``: each device gets all of them."""
        return self._loader(split, None, shuffle, everywhere)

    def resident(self, split: Split) -> Tensor | None:
        """The images of a split at the size of test images, made once for all epochs; None for files of too many."""
        images, transform, size = split.images, self.test_transform, self.image_size
        if isinstance(images, Tensor):
            return images if transform is None else transform(images)
        if known := [decoded for paths, decoded in self._decoded if paths is images]:
            return known[0]
        if transform is None or len(images) * 3 * size**2 > self.resident_mib * 2**20:
            return None
        self._decoded.append((images, decode_images(images, size, transform)))
        return self._decoded[-1][1]

    def _loader(
        self,
        split: Split,
        transform: PadCropFlip | v2.Transform | None,
        shuffle: bool = False,
        everywhere: bool = False,
    ) -> ResumableLoader:
        local_devices, device = 1, torch.device("cpu")
        if self.trainer is not None:
            local_devices, device = self.trainer.num_devices, self.trainer.strategy.root_device
        seed = self.seed or 0
        sampler = self.make_sampler(len(split.targets), shuffle, everywhere)
        if isinstance(transform, PadCropFlip):  # of batches, wherever their images come from
            source = self._loader(split, None, shuffle, everywhere).make_batches
            augmented = AugmentedBatches(source, transform, len(split.targets), seed, device)
            return ResumableLoader(augmented.make_batches, sampler)
        if transform is None and (images := self.resident(split)) is not None:
            resident = ResidentTensors(images.to(device), split.targets.to(device))
            return ResumableLoader(resident.make_batches, sampler)
        if (transform := transform or self.test_transform) is not None:
            default = min(MAX_DEFAULT_WORKERS, suggested_max_num_workers(local_devices), len(sampler))
            num_workers = default if self.num_workers is None else self.num_workers
            batches = TransformedBatches(split, transform, self.image_size, seed, self.on_error)
            if self.decode_on_device:
                return ResumableLoader(DeviceDecodedBatches(batches, num_workers, device).make_batches, sampler)
            workers = WorkerBatches(batches, num_workers, pin_memory=device.type == "cuda")
            return ResumableLoader(workers.make_batches, sampler)
        raise UsageError(f"{type(self).__name__}.read gave files: it needs a test_transform that brings them to size")

    def make_sampler(self, samples: int, shuffle: bool, everywhere: bool = False) -> GlobalBatchSampler:
        """The order of so many samples in batches, dealt out to the trainer's devices unless ``everywhere``."""
        trainer = None if everywhere else self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return GlobalBatchSampler(samples, self.batch_size, shuffle, self.seed or 0, rank, world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Any, ...]:
        """Normalise uint8 images on the device; float images pass through untouched."""
        images, *rest = batch
        if images.dtype == torch.uint8:
            images = normalise(images, *self._statistics(images.device))
            if self.trainer is not None:  # bf16-true and 64-true networks take no float32
                images = self.trainer.precision_plugin.convert_input(images)
        return images, *rest

    def _statistics(self, device: torch.device) -> Tensor:
        """Mean and standard deviation (2, 3, 1, 1), brought to a device once: a copy at every step would stall it."""
        if device not in self._statistics_on:
            self._statistics_on[device] = torch.tensor([[*self.mean], [*self.std]], device=device)[:, :, None, None]
        return self._statistics_on[device]
