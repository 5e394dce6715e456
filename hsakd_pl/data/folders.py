"""What data sets in class folders share."""

from hsakd_pl.data.augment import random_resized_crop, resized_center_crop
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import class_folders, class_names_of, visible
from hsakd_pl.errors import UsageError


class ClassFolderDataModule(ImageDataModule):
    """Base of data sets in ``train/<class>/`` and, for testing, ``val/<class>/``, with ImageNet's statistics."""

    mean = (0.485, 0.456, 0.406)  # the statistics torchvision's weights were trained with
    std = (0.229, 0.224, 0.225)

    def use_size(self, image_size: int, resize: int) -> None:
        """Train on random crops of ``image_size``, test on the centre after bringing the short side to ``resize``."""
        self.image_size, self.resize = image_size, resize
        self.train_transform = random_resized_crop(image_size)
        self.test_transform = resized_center_crop(image_size, resize)
        self.num_classes = len(class_names_of(self.folder / "train")) or self.num_classes

    def read(self, train: bool) -> Split:
        folder = self.folder / ("train" if train else "val")
        if any(visible(archive.name) for archive in folder.glob("*.tar")):
            raise UsageError(f"{folder} still holds archives, so it was unpacked in part: remove it, start again")
        return Split(*class_folders(folder, self.known_names()))

    def read_class_names(self) -> list[str]:
        return class_names_of(self.folder / "train") or super().read_class_names()
