"""Test the checks of splits, class names and a data module's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsakd_pl.data import ImageDataModule, Split, STL10DataModule
from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.errors import UsageError

BYTES = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class MyData(ImageDataModule):
    """Provide a user's data set with a given split."""

    num_classes, image_size = 3, 8
    mean = std = (0.5, 0.5, 0.5)
    train_transform = PadCropFlip(padding=1)

    def __init__(self, split: Any, **options: Any) -> None:
        super().__init__(**options)
        self.split = split

    def read(self, train: bool) -> Split:
        return self.split


def with_pixel(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = torch.zeros(6, 3, 8, 8, dtype=dtype)
    images[4, 1, 7, 7] = value
    return images


WRONG = {
    "grey": (BYTES[:, :1], r"\(6, 1, 8, 8\).*\.expand\(-1, 3, -1, -1\)"),
    "grey without an axis": (BYTES[:, 0], r"\(6, 8, 8\).*\.expand\(-1, 3, -1, -1\)"),
    "channels last": (BYTES.permute(0, 2, 3, 1), r"\(6, 8, 8, 3\).*\.permute\(0, 3, 1, 2\)"),
    "transparent": (torch.zeros(6, 4, 8, 8, dtype=torch.uint8), r"\(6, 4, 8, 8\), not uint8"),
    "one flat row": (BYTES.flatten(1), r"\(6, 192\)"),
    "int64": (BYTES.long(), r"torch.int64.*\.to\(torch.uint8\)"),
    "int8": (BYTES.char(), "torch.int8"),
    "bool": (BYTES.bool(), "torch.bool"),
    "complex": (BYTES.cfloat(), "torch.complex64"),
    "NaN": (with_pixel(torch.nan), "with NaN or inf"),
    "infinite": (with_pixel(-torch.inf, torch.float16), "with NaN or inf"),
    "numpy": (BYTES.numpy(), "images that are neither a tensor nor a list of str"),
    "Path": ([Path("a.png")] * 6, "images that are neither a tensor nor a list of str"),
    "none": (BYTES[:0], "no image"),
    "no path": ([], "no image"),
    "no pixel": (BYTES[..., :0], "no image"),
    "fewer": (BYTES[:5], r"5 images with labels of torch.int64 \(6,\)"),
}
WRONG_LABELS = {
    "one too few": (LABELS[:5], r"6 images with labels of torch.int64 \(5,\)"),
    "one too many": (torch.tensor([*LABELS, 0]), r"6 images with labels of torch.int64 \(7,\)"),
    "none": (LABELS[:0], r"labels of torch.int64 \(0,\)"),
    "a column": (LABELS[:, None], r"labels of torch.int64 \(6, 1\)"),
    "one number": (torch.tensor(0), r"labels of torch.int64 \(\)"),
    "float": (LABELS.float(), r"labels of torch.float32"),
    "bool": (LABELS.bool(), r"labels of torch.bool"),
    "a list": (LABELS.tolist(), r"labels of list.* an integer tensor \(6,\)"),
    "numpy": (LABELS.numpy(), r"labels of ndarray"),
    "from 1": (LABELS + 1, r"labels from 1 to 3: num_classes=3 needs labels 0\.\.2"),
    "ignored": (LABELS - 1, r"labels from -1 to 1"),
    "of another data set": (LABELS.byte() * 120, r"labels from 0 to 240"),
}


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("name", WRONG)
def test_invalid_images_raise_naming_reader(name: str, stage: str) -> None:
    images, message = WRONG[name]
    reader = rf"MyData.read\(train={stage == 'fit'}\) returned "
    with pytest.raises(UsageError, match=reader + ".*" + message):
        MyData(Split(images, LABELS)).setup(stage)


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("name", WRONG_LABELS)
def test_invalid_labels_raise_naming_reader(name: str, stage: str) -> None:
    labels, message = WRONG_LABELS[name]
    for images in (BYTES, ["a.png"] * 6):
        with pytest.raises(UsageError, match=rf"MyData.read\(train={stage == 'fit'}\) returned .*{message}"):
            MyData(Split(images, labels)).setup(stage)


@pytest.mark.parametrize("split", [(BYTES, LABELS), None, BYTES])
def test_reader_without_split_raises_naming_it(split: Any) -> None:
    with pytest.raises(UsageError, match=r"MyData.read\(train=True\) returned a .*: return Split\(images, labels\)"):
        MyData(split).setup("fit")


@pytest.mark.parametrize("images", [BYTES, BYTES.float(), BYTES.bfloat16(), BYTES.double(), ["a.png"] * 6])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_valid_images_and_labels_are_kept(images: Any, dtype: torch.dtype) -> None:
    data = MyData(Split(images, LABELS.to(dtype)))
    data.setup()
    assert data.splits["train"].images is images and torch.equal(data.splits["train"].targets, LABELS)


def test_training_split_needs_at_least_two_images() -> None:
    with pytest.raises(UsageError, match="the training split's number of images must be at least 2, got 1"):
        MyData(Split(BYTES[:1], LABELS[:1])).setup("fit")
    alike = Split(BYTES[:2], LABELS[:1].expand(2))
    for options in ({"train_fraction": 0.5}, {"val_fraction": 0.5}):
        with pytest.raises(UsageError, match="number of images must be at least 2, got 1"):
            MyData(alike, **options).setup("fit")
    MyData(alike).setup("fit")
    MyData(Split(BYTES[:1], LABELS[:1])).setup("test")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("std", (0.5, 0.0, 0.5)),
        ("std", (0.5, -0.1, 0.5)),
        ("std", (0.5, 0.5, float("nan"))),
        ("std", 0.5),
        ("std", (1e-60,) * 3),
        ("std", (0.5,)),
        ("mean", (0.5, float("inf"), 0.5)),
        ("mean", ()),
        ("mean", (0.5,) * 4),
    ],
)
def test_invalid_statistics_raise_naming_option(option: str, value: Any) -> None:
    data = MyData(Split(BYTES, LABELS))
    setattr(data, option, value)
    with pytest.raises(UsageError, match=rf"MyData.{option} must be three finite numbers"):
        data.setup("fit")


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
@pytest.mark.parametrize("size", [0, -32])
def test_image_size_below_1_raises(size: int, stage: str) -> None:
    with pytest.raises(UsageError, match=f"image_size must be at least 1, got {size}"):
        STL10DataModule(image_size=size).setup(stage)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat", "dog"], "list of 2"),
        ([*"abcd"], "list of 4"),
        ([0, 1, 2], "list of 3"),
        ("cat", "str"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_class_name_count_mismatch_raises(names: Any, found: str, stage: str) -> None:
    data = MyData(Split(BYTES, LABELS))
    data.read_class_names = lambda: names
    with pytest.raises(
        UsageError, match=rf"MyData.read_class_names\(\) gives class names as a {found}, not .* of 3 strings"
    ):
        data.setup(stage)
    data.read_class_names = lambda: np.array(["cat", "dog", "Löwe"])
    data.setup("predict")
    assert data.class_names == ["cat", "dog", "Löwe"]
