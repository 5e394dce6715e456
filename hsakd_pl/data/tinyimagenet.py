"""TinyImageNet (Stanford CS231n), read as distributed: the validation images stay unsorted on disk."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torchvision.datasets.utils import download_and_extract_archive

from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.base import DataOptions
from hsakd_pl.data.folders import ClassFolderDataModule
from hsakd_pl.data.images import decode_images, obtain
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import images_below
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import naming, read_text
from hsakd_pl.signatures import Unpack

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 64  # side of the images on disk


class TinyImageNetDataModule(ClassFolderDataModule):
    """Load TinyImageNet into memory, at 32 x 32 for the linear probe; its validation images are used for testing.

    Args:
        root: folder that contains ``tiny-imagenet-200/``, or that folder itself. Validation images may be as
            distributed, with ``val_annotations.txt``, or sorted into ``val/<class>/``: samples and order are equal.
        image_size: side of the random resized crops in training, and of the resized test images.
        download: download the data set to ``root`` if it is missing.

    Other arguments: :class:`ImageDataModule`.

    Examples:
        >>> data = TinyImageNetDataModule("data", batch_size=64)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 3, 32, 32]), torch.Size([64]))
    """

    num_classes = 200
    folder_name = "tiny-imagenet-200"

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 32,
        download: bool = False,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(root, **options)
        self.use_size(image_size, image_size, random_resized_crop(image_size))
        if not download or (self.folder / "train").is_dir():  # otherwise a folder is that of another data set
            self.num_classes = len(self.read_class_names()) or self.num_classes
        self.download = download

    def prepare_data(self) -> None:
        """Download the data set if ``download`` is set and it is missing."""
        with naming(self.folder):
            if self.download and not (self.folder / "val").is_dir():
                download = partial(download_and_extract_archive, URL, str(self.root), md5=MD5)
                obtain("TinyImageNet", self.root, download)

    def read(self, train: bool) -> Split:
        val = self.folder / "val"
        unsorted_images = [] if train else images_below(val / "images")[0]
        split = _annotated(val, self.label_names(), unsorted_images) if unsorted_images else super().read(train)
        return split._replace(images=decode_images(list(split.images), SIZE))


def _annotated(val: Path, classes: list[str], image_files: Sequence[str]) -> Split:
    """Return paths and labels from ``val_annotations.txt``, in the order that class folders would have."""
    annotations = val / "val_annotations.txt"
    folder = val / "images"
    with naming(annotations):
        if not annotations.is_file():
            raise UsageError(f"{annotations} is missing: extract the archive again, completely")
    file_names = {Path(path).name for path in image_files}
    labels: dict[str, int] = {}
    for number, line in enumerate(read_text(annotations).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{annotations}, line {number}"
        name, _, fields = line.partition("\t")
        wnid, *_ = fields.split("\t")
        if wnid not in classes:
            raise UsageError(
                f"{where}: {wnid[:40]!r} is not one of the classes in train/ (fields are separated by tabs)"
            )
        if name not in file_names or name in labels:
            raise UsageError(f"{where}: {name[:40]!r} is listed twice or is not in {folder}: extract the archive again")
        labels[name] = classes.index(wnid)
    if len(labels) != len(file_names):
        raise UsageError(
            f"{annotations} lists {counted(len(labels), 'image')}, but {folder} contains {len(file_names)}: extract "
            "the archive again"
        )
    names = sorted(labels, key=lambda name: (labels[name], name))
    paths = [str(folder / name) for name in names]
    return Split(paths, torch.tensor([labels[name] for name in names]))
