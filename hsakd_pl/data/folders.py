"""The base class of data sets in class folders."""

from torchvision.transforms import v2

from hsakd_pl.data.augment import PadCropFlip, resized_center_crop
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.layout import advice, split_folder
from hsakd_pl.data.limits import check_image_size, check_side
from hsakd_pl.data.splits import Split
from hsakd_pl.data.walk import class_folders, class_names_of, contains_images
from hsakd_pl.errors import UsageError
from hsakd_pl.files.walk import visible

# The statistics of ImageNet that torchvision's weights were trained with
MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)
STD: tuple[float, ...] = (0.229, 0.224, 0.225)


class ClassFolderDataModule(ImageDataModule):
    """Base class of data sets in ``train/<class>/`` and, for testing, ``val/<class>/``, with ImageNet's statistics.

    The folders may have other usual names of these splits, such as ``Training/`` and ``validation/``.
    """

    mean = MEAN
    std = STD

    def use_size(self, image_size: int, resize: int, train_transform: PadCropFlip | v2.Transform) -> None:
        """Set the size of the images, and the transforms for training and testing.

        Args:
            image_size: side of the images.
            resize: short side to resize to before the centre is cut out for testing.
            train_transform: transform for training.

        Raises UsageError for sizes that pictures cannot have.
        """
        check_image_size(image_size)
        check_side("resize", resize)
        self.image_size = image_size
        self.resize = resize
        self.train_transform = train_transform
        self.test_transform = resized_center_crop(image_size, resize)

    def read(self, train: bool) -> Split:
        folder = split_folder(self.folder, "train" if train else "val")
        if any(visible(archive.name) for archive in folder.glob("*.tar")):
            raise UsageError(
                f"{folder} still contains archives, so it was unpacked only in part: remove it and start again"
            )
        if not class_names_of(folder):
            if contains_images(folder):
                raise UsageError(
                    f"{folder} contains images, but no class folders: sort them into {folder.name}/<class>/ (Kaggle's "
                    "copy of ImageNet lists the classes of its validation images in LOC_val_solution.csv)"
                )
            raise UsageError(
                f"{folder} is missing or contains no class folders: point --data.init_args.root at the data set's "
                f"folder, or extract its archive again, completely{advice(self.root)}"
            )
        return Split(*class_folders(folder, self.folder_names()))

    def folder_names(self) -> list[str]:
        """Return the names of the class folders in label order."""
        return self.label_names()

    def read_class_names(self) -> list[str]:
        return class_names_of(split_folder(self.folder, "train"))
