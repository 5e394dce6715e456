"""What every data module shares: arguments, splits, loaders and normalisation on the device."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import suggested_max_num_workers
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip, check_statistics, normalise, resized_center_crop
from hsakd_pl.data.jpeg import DeviceDecodedBatches
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.data.sources import ResidentTensors, TransformedBatches, WorkerBatches
from hsakd_pl.data.splits import Split, check_class_names, check_split, stratified_indices
from hsakd_pl.data.walk import image_paths
from hsakd_pl.errors import UsageError, require
from hsakd_pl.files import local_path

MAX_DEFAULT_WORKERS = 16  # decoding for one GPU saturates before; more only cost memory


class ImageDataModule(pl.LightningDataModule):
    """Base of all data modules; a data set of your own is a subclass with these attributes and :meth:`read`.

    Batches are uint8 images (B, 3, S, S) with int64 labels (B,), and become normalised float32 on the device.

    Args:
        root: folder of the data set.
        batch_size: samples of all devices together.
        train_fraction: few-shot part of the training split, with the indices of scikit-learn's
            ``StratifiedShuffleSplit(n_splits=1, test_size=1 - train_fraction, random_state=0)``.
        val_fraction: part of the (few-shot) training split held out for validation, stratified and seeded. 0
            is the paper's protocol: validation on the test split.
        seed: of shuffling, augmentation and the held-out part; by default that of ``pl.seed_everything``.
        augment: off, training images are treated like test images.
        num_workers: processes that open images, per device; by default what the machine has.
        predict_dir: folder whose images ``predict`` takes, turned upright as their EXIF data say.
        on_error: what becomes of a broken image in ``predict``: a ``row`` that says so, or ``raise`` ends it.

    Raises UsageError naming the argument that is out of range.
    """

    folder_name: ClassVar[str] = ""  # of the data set inside root
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str]  # after setup
    train_transform: PadCropFlip | v2.Transform
    test_transform: v2.Transform | None = None  # None: images have their final size
    decode_on_device: bool = False

    def __init__(
        self, root: str | Path = "data", batch_size: int = 64, train_fraction: float = 1.0, val_fraction: float = 0.0,
        seed: int | None = None, augment: bool = True, num_workers: int | None = None,
        predict_dir: str | Path | None = None, on_error: str = "row",
    ) -> None:  # fmt: skip
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(0 < train_fraction <= 1, "train_fraction", train_fraction, "above 0 and at most 1")
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "at least 0 and below 1")
        require(seed is None or 0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")
        require(num_workers is None or num_workers >= 0, "num_workers", num_workers, "at least 0")
        require(on_error in ("row", "raise"), "on_error", on_error, "row or raise")
        self.root, self.batch_size = local_path("root", root), batch_size
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.seed, self.augment, self.num_workers = seed, augment, num_workers
        self.predict_dir, self.on_error = predict_dir, on_error
        self.splits: dict[str, Split] = {}
        self._statistics_on: dict[torch.device, Tensor] = {}

    @property
    def folder(self) -> Path:
        """Where the files are: ``folder_name`` in ``root``, or ``root`` itself."""
        inner = self.root / self.folder_name
        return inner if inner.is_dir() else self.root

    def read(self, train: bool) -> Split:
        """The training or the test split as it is on disk; raises UsageError if it is missing or broken."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def read_class_names(self) -> list[str]:
        """Names in the order of the labels; only numbers where the data set is not there to ask."""
        return [str(label) for label in range(self.num_classes)]

    def setup(self, stage: str | None = None) -> None:
        """Read what ``stage`` needs and is not there yet; UsageError if a fraction leaves a class empty."""
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        name = type(self).__name__
        check_statistics(name, self.mean, self.std)
        require(self.image_size >= 1, "image_size", self.image_size, "at least 1")
        self.class_names = check_class_names(self.read_class_names(), self.num_classes, f"{name}.read_class_names()")
        validating = stage in ("fit", "validate")
        if (stage in ("fit", None) or (validating and self.val_fraction)) and "train" not in self.splits:
            self._read_train(self.seed)
        if (stage in ("test", None) or (validating and not self.val_fraction)) and "test" not in self.splits:
            self.splits["test"] = self._read(train=False)
        if not self.val_fraction and "test" in self.splits:
            self.splits["val"] = self.splits["test"]

    def _read(self, train: bool) -> Split:
        return check_split(self.read(train), self.num_classes, f"{type(self).__name__}.read(train={train})")

    def _read_train(self, seed: int) -> None:
        train = self._read(train=True)
        if self.train_fraction < 1:
            option = f"train_fraction={self.train_fraction}"
            train = train.take(stratified_indices(train.targets, 1 - self.train_fraction, 0, option)[0])
        if self.val_fraction:
            option = f"val_fraction={self.val_fraction}"
            kept, held = stratified_indices(train.targets, self.val_fraction, seed, option)
            train, self.splits["val"] = train.take(kept), train.take(held)
        else:
            rank_zero_info("Validating on the test split, as the paper does (val_fraction: hold out instead)")
        require(len(train.targets) > 1, "the training split's number of images", len(train.targets), "at least 2")
        self.splits["train"] = train

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented batches of the training split."""
        # Lightning sets overfit_batches on the trainer without declaring it
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        train, shuffle = self.splits["train"], not overfit
        return self._loader(train, self.train_transform, shuffle) if self.augment else self.plain_loader(train, shuffle)

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
        return self._loader(Split(paths, paths), resized_center_crop(self.image_size, self.image_size))

    def plain_loader(self, split: Split, shuffle: bool = False, everywhere: bool = False) -> ResumableLoader:
        """Batches without augmentation; ``everywhere``: each device gets all of them."""
        transform = self.test_transform
        if transform is not None and isinstance(split.images, Tensor):  # once for all epochs
            split, transform = split._replace(images=transform(split.images)), None
        return self._loader(split, transform, shuffle, everywhere)

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
        if isinstance(transform, v2.Transform):
            default = min(MAX_DEFAULT_WORKERS, suggested_max_num_workers(local_devices), len(sampler))
            num_workers = default if self.num_workers is None else self.num_workers
            batches = TransformedBatches(split, transform, self.image_size, seed, self.on_error)
            if self.decode_on_device:
                return ResumableLoader(DeviceDecodedBatches(batches, num_workers, device).make_batches, sampler)
            workers = WorkerBatches(batches, num_workers, pin_memory=device.type == "cuda")
            return ResumableLoader(workers.make_batches, sampler)
        assert isinstance(split.images, Tensor), "image files need a torchvision transform"
        resident = ResidentTensors(split.images.to(device), split.targets.to(device), transform, seed)
        return ResumableLoader(resident.make_batches, sampler)

    def make_sampler(self, samples: int, shuffle: bool, everywhere: bool = False) -> GlobalBatchSampler:
        """The order of so many samples in batches, dealt out to the trainer's devices unless ``everywhere``."""
        trainer = None if everywhere else self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return GlobalBatchSampler(samples, self.batch_size, shuffle, self.seed or 0, rank, world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Any]:
        """Normalise uint8 images on the device; float images pass through untouched."""
        images, targets = batch
        if images.dtype == torch.uint8:
            images = normalise(images, *self._statistics(images.device))
            if self.trainer is not None:  # bf16-true and 64-true networks take no float32
                images = self.trainer.precision_plugin.convert_input(images)
        return images, targets

    def _statistics(self, device: torch.device) -> Tensor:
        """Mean and standard deviation (2, 3, 1, 1), brought to a device once: a copy at every step would stall it."""
        if device not in self._statistics_on:
            self._statistics_on[device] = torch.tensor([[*self.mean], [*self.std]], device=device)[:, :, None, None]
        return self._statistics_on[device]
