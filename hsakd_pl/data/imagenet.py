"""ImageNet (ILSVRC2012), or class folders of photographs in its layout."""

from functools import partial
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info
from torchvision.datasets import ImageNet
from torchvision.datasets.imagenet import ARCHIVE_META

from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import ClassFolderDataModule
from hsakd_pl.data.ilsvrc import find_answers, find_words, image_folder, labelled
from hsakd_pl.data.images import obtain
from hsakd_pl.data.layout import split_folder
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import class_names_of, contains_images
from hsakd_pl.errors import require
from hsakd_pl.files import naming
from hsakd_pl.signatures import Unpack

NUM_CLASSES = 1000
IMAGES = {"train": 1_281_167, "val": 50_000}  # of ILSVRC2012


class ImageNetDataModule(ClassFolderDataModule):
    """Load ImageNet: random resized crops for training, the centre for testing; worker processes open the files.

    Photographs are turned upright as their EXIF data say, and transparent pixels are white. Files stay where they are;
    classes are in the order of their WordNet ids, so that labels are the same in every layout.

    Source: Russakovsky et al., IJCV 2015.

    Args:
        root: folder with ``train/<class>/`` and, for testing, ``val/<class>/``, or an unsorted ``val/`` with the
            development kit next to it; or the folder of Kaggle's archive, with ``ILSVRC/`` and
            ``LOC_val_solution.csv``; or the folder of the archives ``ILSVRC2012_*.tar`` and the development kit, which
            torchvision then unpacks there.
        image_size: side of the crops; for testing, the short side is first resized to 256/224 of it.
        decode_on_device: decode and crop on the device (NVIDIA GPUs with nvJPEG), for hosts with too few cores; workers
            only read files. Pixels differ slightly between decoders: evaluate with the decoder used in training.
        names: ``wnid`` calls the classes as their folders (``n01440764``), ``words`` by the usual names (``tench``).

    Other arguments: :class:`ImageDataModule`.

    Raises:
        UsageError: for ``names`` other than ``wnid`` and ``words``.

    Examples:
        >>> data = ImageNetDataModule("data", batch_size=4, num_workers=0)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 224, 224]), torch.Size([4]))
    """

    num_classes = NUM_CLASSES

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 224,
        decode_on_device: bool = False,
        names: str = "wnid",
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        require(names in ("wnid", "words"), "names", names, "wnid or words")
        self.names = names
        self.use_size(image_size, image_size * 256 // 224, random_resized_crop(image_size))
        self.num_classes = len(self.read_class_names()) or self.num_classes
        self.decode_on_device = decode_on_device

    @property
    def folder(self) -> Path:
        """Return the folder of ``train/`` and ``val/``: ``root``, or that of Kaggle's archive in it."""
        return image_folder(self.root)

    def folder_names(self) -> list[str]:
        if self.names == "wnid":
            return self.label_names()
        val = split_folder(self.folder, "val")
        return class_names_of(split_folder(self.folder, "train")) or class_names_of(val) or self._answered()

    def _answered(self) -> list[str]:
        answers = find_answers(self.folder)
        return [] if answers is None else sorted(set(answers.wnids.values()))

    def read_class_names(self) -> list[str]:
        wnids = super().read_class_names()
        return find_words(self.folder, wnids) if wnids and self.names == "words" else wnids

    def read(self, train: bool) -> Split:
        val = split_folder(self.folder, "val")
        is_unsorted = not train and not class_names_of(val) and contains_images(val)
        answers = find_answers(self.folder) if is_unsorted else None
        split = super().read(train) if answers is None else labelled(val, answers, self.folder_names())
        expected = IMAGES["train" if train else "val"]
        if self.num_classes == NUM_CLASSES and len(split.targets) != expected:
            rank_zero_info(
                f"{self.folder} has {len(split.targets):,} images in {'train' if train else 'val'}/, not ILSVRC2012's "
                f"{expected:,}"
            )
        return split

    def prepare_data(self) -> None:
        """Unpack the original archives if the class folders do not exist yet."""
        with naming(self.root):
            if (self.root / ARCHIVE_META["devkit"][0]).is_file():
                for split in ("train", "val"):
                    if not (self.root / split).is_dir():
                        obtain("ImageNet", self.root, partial(ImageNet, self.root, split))
