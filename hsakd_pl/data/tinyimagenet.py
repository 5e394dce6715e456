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
from hsakd_pl.errors import UsageError
from hsakd_pl.files import read_text
from hsakd_pl.signatures import Unpack

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 64  # pixels a side on disk


class TinyImageNetDataModule(ClassFolderDataModule):
    """TinyImageNet in memory, at 32 x 32 for the linear probe; its validation images are for testing.

    Args:
        root: folder that holds ``tiny-imagenet-200/``, or that folder. Validation images as distributed,
            with ``val_annotations.txt``, or sorted into ``val/<class>/`` give the same samples in one order.
        image_size: side of the random resized crops in training and of the whole test images.
        download: fetch the data set into ``root`` if it is not there.

    Other arguments: :class:`ImageDataModule`.
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
        self.num_classes = len(self.read_class_names()) or self.num_classes
        self.download = download

    def prepare_data(self) -> None:
        """Download if asked for and needed."""
        if self.download and not (self.folder / "val").is_dir():
            download = partial(download_and_extract_archive, URL, str(self.root), md5=MD5)
            obtain("TinyImageNet", self.root, download)

    def read(self, train: bool) -> Split:
        val = self.folder / "val"
        found = [] if train else images_below(val / "images")[0]
        split = _annotated(val, self.known_names(), found) if found else super().read(train)
        return split._replace(images=decode_images([*split.images], SIZE))


def _annotated(val: Path, classes: list[str], found: Sequence[str]) -> Split:
    """Paths and labels out of ``val_annotations.txt``, in the order that class folders would have."""
    annotations = val / "val_annotations.txt"
    if not annotations.is_file():
        raise UsageError(f"{annotations} is missing: was the archive fully extracted?")
    present = {Path(path).name for path in found}
    labels: dict[str, int] = {}
    lines = [(number, line) for number, line in enumerate(read_text(annotations).splitlines(), 1) if line.strip()]
    for number, line in lines:
        name, wnid, *_ = [*line.split("\t"), ""]
        where = f"{annotations}, line {number}"
        if wnid not in classes:
            raise UsageError(f"{where}: {wnid[:40]!r} is none of the classes in train/ (fields end with a tab)")
        if name not in present or name in labels:
            raise UsageError(f"{where}: {name[:40]!r} is named twice or is not in {val / 'images'}: extract again")
        labels[name] = classes.index(wnid)
    if len(labels) != len(present):
        raise UsageError(
            f"{annotations} names {len(labels)} images, {val / 'images'} holds {len(present)}: extract again"
        )
    names = sorted(labels, key=lambda name: (labels[name], name))
    return Split([str(val / "images" / name) for name in names], torch.tensor([labels[name] for name in names]))
